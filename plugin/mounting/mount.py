"""One mount with its worker, made by this plugin or left by an earlier one.

While the plugin restarts, workers go on where the service manager keeps what they hang on
(fd_store.py). A mount is taken over if nothing of it is missing: it is in the registry and
somebody uses it, its descriptors have all come back, its worker lives, and at its target it alone
is mounted. Of anything else the target is cleared. A worker that lives all the same, such as one
that was unmounted while files were open, serves its last users and is attended to until it ends.
"""

import logging
import os
import select
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from passthrough.linux import mountinfo
from passthrough.worker.handover import Report, decode_report, encode
from plugin.mounting import mountpoints
from plugin.mounting.fd_store import KINDS, Inherited
from plugin.mounting.spawner import PROC, Process
from plugin.mounting.worker import Worker
from plugin.volume import FileName, Served, VolumeName

log = logging.getLogger(__name__)

# The name, in the log, of a volume whose mount is not in the registry any more.
UNKNOWN = "(unmounted)"
NO_DEVICE = 0


class Mount:
    """A volume's mount, from mount(2) to umount2(2), and its worker."""

    def __init__(
        self,
        target: Path,
        attached: mountpoints.Attached,
        worker: Worker,
        number: int,
        tell_loss: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Take the descriptor of *attached*."""
        self.target = target
        self.worker = worker
        self.number = number
        """What it is called in the service manager's store; there is never another of it."""
        self.tell_loss = tell_loss
        """Called with how its worker ended if it did so unasked."""
        self.lost = ""
        """How the worker ended if it did so unasked; the mount is dead then."""
        self.leaving = False
        """Whether it is being taken down, so that its worker may end."""
        self.unchecked = False
        """Whether an earlier plugin has looked at what it serves, and this one has not."""
        self._device = attached.device
        self._fuse_fd = attached.fuse_fd

    def let_go(self) -> None:
        """Close the descriptor of /dev/fuse; the connection ends unless others have it too."""
        fd, self._fuse_fd = self._fuse_fd, -1
        if fd >= 0:
            os.close(fd)

    def is_whole(self) -> bool:
        """Whether this and nothing else is mounted at the target, with a live worker."""
        found = [entry.device for entry in mountpoints.mounts_at(self.target)]
        return not self.lost and not self.leaving and found == [self._device]

    def served(self, name: VolumeName) -> Served:
        """What a later plugin must know of it.

        Of a mount that has been detached no device: a later one at the same target may have it now.
        """
        device = NO_DEVICE if self.leaving else self._device
        return Served(name, self.number, device, encode(self.worker.report).decode())

    @contextmanager
    def duplicated(self) -> Iterator[dict[str, int]]:
        """Duplicates, for a while, of all that it takes to go on with it, by kind.

        Of the descriptors themselves the worker's end disposes at any time.

        Raises:
            OSError: the worker has ended, or there can be no more descriptors.
        """
        ties = {"fuse": self._fuse_fd, **self.worker.ties()}
        with ExitStack() as made:
            duplicates = {}
            for kind in KINDS:
                duplicates[kind] = os.dup(ties[kind])
                made.callback(os.close, duplicates[kind])
            yield duplicates


class TakenOver(NamedTuple):
    """What an earlier plugin has left and who lives."""

    whole: dict[VolumeName, Mount]
    """Mounts that go on."""
    leaving: list[Mount]
    """Mounts that are or will be detached; their workers serve whoever still uses them."""


def take_over(
    mount_dir: Path,
    inherited: Inherited,
    served: Iterable[Served],
    used: Mapping[VolumeName, FileName],
    proc: Path = PROC,
) -> TakenOver:
    """Sort out what has come back from the service manager; takes all of its descriptors.

    *served* are the mounts that the earlier plugin knew. Those of volumes that are not *used*, who
    have been given back, are for users with files open alone. Each mount must be attended to.
    *used* tells the name of each volume's mount point. Process ids are those of *proc*.
    """
    places = mountpoints.by_target(mount_dir)
    rows = {row.number: row for row in served}
    taken, gone = TakenOver({}, []), list[int]()
    for number, descriptors in inherited.kept.items():
        row = rows.get(number)
        name = VolumeName(UNKNOWN) if row is None else row.volume
        target = mountpoints.at(mount_dir, used.get(name, FileName(UNKNOWN)))
        found = _found(target, number, row, descriptors, proc)
        if found is None:
            gone.append(number)
        elif (
            row is not None
            and row.volume in used
            and _is_whole(places.get(found.target, []), row, descriptors)
        ):
            taken.whole[row.volume] = found
        else:
            found.leaving = True
            found.let_go()
            taken.leaving.append(found)
    inherited.store.forget(gone)
    return taken


def _is_whole(
    found: Iterable[mountinfo.MountEntry], row: Served, descriptors: Mapping[str, int]
) -> bool:
    devices = [entry.device for entry in found]
    return devices == [row.device] and descriptors.keys() == set(KINDS)


def _found(
    target: Path, number: int, row: Served | None, descriptors: Mapping[str, int], proc: Path
) -> Mount | None:
    """The mount *number*, if its worker lives and can be attended to; else its descriptors go."""
    name = VolumeName(UNKNOWN) if row is None else row.volume
    attached = mountpoints.Attached(
        descriptors.get("fuse", -1), NO_DEVICE if row is None else row.device
    )
    needed = {"life", "log", "process"} <= descriptors.keys()
    if not needed or _has_ended(descriptors["process"]):
        log.info("volume %s: its worker has ended, or has not been kept", name)
        for fd in descriptors.values():
            os.close(fd)
        return None
    worker = Worker(name)
    worker.adopt(Process.behind(descriptors, proc), _report_of(row))
    mount = Mount(target, attached, worker, number)
    mount.unchecked = True
    return mount


def _report_of(row: Served | None) -> Report:
    if row is not None:
        try:
            return decode_report(row.report.encode())
        except msgspec.DecodeError:  # of another passfs; it is there to be shown
            log.info("volume %s: what its worker has said is not understood", row.volume)
    return Report(serving=True)


def _has_ended(pid_fd: int) -> bool:
    poll = select.poll()
    poll.register(pid_fd, select.POLLIN)
    return bool(poll.poll(0))
