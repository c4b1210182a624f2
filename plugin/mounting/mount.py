"""One mount with its worker, made by this plugin or adopted from an earlier one.

While the plugin restarts, the service manager stores the descriptors of each mount (fd_store.py),
and its worker goes on. The next plugin adopts a *whole* mount:

- The registry has the mount, and a reference to its volume.
- All its descriptors have come back, and its worker lives.
- It is the only mount at its mount point.

Otherwise the mount point is cleared. If a mount was unmounted while files were open, its worker
lives on. The worker serves the open files, and the plugin supervises it until it ends.
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
from plugin.volume import FileName, MountRecord, VolumeName

log = logging.getLogger(__name__)

# The name of a volume in the log, if its mount is no longer in the registry.
UNKNOWN_VOLUME = "(unmounted)"
NO_DEVICE = 0


class Mount:
    """A volume's mount, from mount(2) to umount2(2), and its worker."""

    def __init__(
        self,
        target: Path,
        connection: mountpoints.FuseConnection,
        worker: Worker,
        number: int,
        on_loss: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Take the descriptor of *connection*."""
        self.target = target
        """The mount point."""
        self.worker = worker
        self.number = number
        """The mount's number in the fd store; never used again for another mount."""
        self.on_loss = on_loss
        """Called with the reason of a loss: how the worker ended."""
        self.loss = ""
        """How the worker ended without being asked to, which makes the mount dead; else empty."""
        self.detached = False
        """True from the beginning of the unmount on: the worker is expected to end."""
        self.source_unchecked = False
        """True if an earlier plugin opened the source, and this plugin has not."""
        self._device = connection.device
        self._fuse_fd = connection.fuse_fd

    def close_fuse_fd(self) -> None:
        """Close the descriptor of /dev/fuse; the last one that closes ends the connection."""
        fd, self._fuse_fd = self._fuse_fd, -1
        if fd >= 0:
            os.close(fd)

    def is_whole(self) -> bool:
        """Return whether the worker lives, and this mount is the only one at its mount point."""
        found = [entry.device for entry in mountpoints.mounts_at(self.target)]
        return not self.loss and not self.detached and found == [self._device]

    def record(self, name: VolumeName) -> MountRecord:
        """Return the facts that the next plugin needs to adopt this mount of volume *name*.

        A detached mount has no device: a later mount at the same mount point may have the same one.
        """
        device = NO_DEVICE if self.detached else self._device
        return MountRecord(name, self.number, device, encode(self.worker.report).decode())

    @contextmanager
    def duplicated_descriptors(self) -> Iterator[dict[str, int]]:
        """Duplicate all descriptors for the fd store, by kind; the block's end closes them.

        The originals may be closed at any time, when the worker ends.

        Raises:
            OSError: the worker has ended, or the limit of descriptors is reached.
        """
        originals = {"fuse": self._fuse_fd, **self.worker.descriptors()}
        with ExitStack() as stack:
            duplicates = {}
            for kind in KINDS:
                duplicates[kind] = os.dup(originals[kind])
                stack.callback(os.close, duplicates[kind])
            yield duplicates


class Adopted(NamedTuple):
    """The mounts of an earlier plugin with live workers."""

    whole: dict[VolumeName, Mount]
    """Mounts that go on."""
    detached: list[Mount]
    """Mounts that are or will be unmounted; their workers serve their last users."""


def adopt_mounts(
    mount_dir: Path,
    inherited: Inherited,
    mount_records: Iterable[MountRecord],
    used: Mapping[VolumeName, FileName],
    proc: Path = PROC,
) -> Adopted:
    """Return the mounts of *inherited* with live workers; takes all of its descriptors.

    The caller supervises each mount. *mount_records* are of the earlier plugin. *used* has the
    name of the mount point of each volume with references. Mounts of other volumes were unmounted,
    and serve open files only. Process ids are those of the procfs *proc*.
    """
    mounts = mountpoints.mounts_below(mount_dir)
    records = {record.number: record for record in mount_records}
    adopted, ended = Adopted({}, []), list[int]()
    for number, descriptors in inherited.stored.items():
        record = records.get(number)
        name = VolumeName(UNKNOWN_VOLUME) if record is None else record.volume
        target = mountpoints.path_of(mount_dir, used.get(name, FileName(UNKNOWN_VOLUME)))
        found = _adopt_mount(target, number, record, descriptors, proc)
        if found is None:
            ended.append(number)
        elif (
            record is not None
            and record.volume in used
            and _is_whole(mounts.get(found.target, []), record, descriptors)
        ):
            adopted.whole[record.volume] = found
        else:
            found.detached = True
            found.close_fuse_fd()
            adopted.detached.append(found)
    inherited.store.remove(ended)
    return adopted


def _is_whole(
    mounts: Iterable[mountinfo.MountEntry], record: MountRecord, descriptors: Mapping[str, int]
) -> bool:
    devices = [entry.device for entry in mounts]
    return devices == [record.device] and descriptors.keys() == set(KINDS)


def _adopt_mount(
    target: Path,
    number: int,
    record: MountRecord | None,
    descriptors: Mapping[str, int],
    proc: Path,
) -> Mount | None:
    """Return the mount *number*, or close *descriptors* if its worker cannot be supervised."""
    name = VolumeName(UNKNOWN_VOLUME) if record is None else record.volume
    connection = mountpoints.FuseConnection(
        descriptors.get("fuse", -1), NO_DEVICE if record is None else record.device
    )
    needed = {"life", "log", "process"} <= descriptors.keys()
    if not needed or _has_ended(descriptors["process"]):
        log.info("volume %s: its worker has ended, or its descriptors were lost", name)
        for fd in descriptors.values():
            os.close(fd)
        return None
    worker = Worker(name)
    worker.adopt(Process.from_descriptors(descriptors, proc), _report_of(record))
    mount = Mount(target, connection, worker, number)
    mount.source_unchecked = True
    return mount


def _report_of(record: MountRecord | None) -> Report:
    if record is not None:
        try:
            return decode_report(record.report.encode())
        except msgspec.DecodeError:  # another version wrote it; the report is only shown
            log.info("volume %s: its worker's report is of another version", record.volume)
    return Report(serving=True)


def _has_ended(pid_fd: int) -> bool:
    poll = select.poll()
    poll.register(pid_fd, select.POLLIN)
    return bool(poll.poll(0))
