"""One mount with its worker, made by this plugin or adopted from an earlier one.

While the plugin restarts, the service manager stores the descriptors of each mount (fd_store.py),
and its worker goes on. The next plugin adopts a *whole* mount:

- The registry has the mount, and a reference to its volume.
- All its descriptors have come back, and its worker lives. An older plugin stored no control page.
- It is the only mount at its mount point.

If an earlier plugin died while a successor took over (succession.py), the mount has two workers.

Otherwise the mount point is cleared. If a mount was unmounted while files were open, its worker
lives on. The worker serves the open files, and the plugin supervises it until it ends.
"""

import logging
import os
import select
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from passthrough.linux import mountinfo
from passthrough.linux.pidfd import has_ended
from passthrough.options.table import Requested
from passthrough.options.timeouts import timeouts
from passthrough.worker import control, fuse_mount
from passthrough.worker.handover import Report, decode_report, encode
from plugin.events import Field
from plugin.mounting import mountpoints
from plugin.mounting.fd_store import FUSE, PROCESS_KINDS, Inherited, turns
from plugin.mounting.process import PROC, Process
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
        self.successor: Worker | None = None
        """The worker of the plugin's own program that takes over from `worker`."""
        self.resolved = trio.Event()
        """Not set while the end of a succession is open that an earlier plugin has begun."""
        self.resolved.set()
        self.leaving: list[Worker] = []
        """Workers that have been replaced and have not ended."""
        self.program_note = ""
        """Why an older program serves the mount; empty if it is the plugin's own."""
        self.replaced_s = 0.0
        """The seconds that the replacement of an older program took; 0 if there was none."""
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
        self.device = connection.device
        """st_dev of the file system."""
        self._fuse_fd = connection.fuse_fd

    @property
    def fuse_fd(self) -> int:
        """The descriptor of /dev/fuse; -1 once it is closed."""
        return self._fuse_fd

    @property
    def place(self) -> dict[str, Field]:
        """The worker and the device, as events have them."""
        device = f"{os.major(self.device)}:{os.minor(self.device)}"
        return {"worker": self.worker.pid, "device": device}

    @property
    def keys(self) -> list[str]:
        """The keys of the descriptors in the fd store."""
        return [FUSE, *self.worker.keys]

    @property
    def workers(self) -> list[Worker]:
        """The worker, and the others before and after it that have not ended."""
        after = [] if self.successor is None else [self.successor]
        return [*self.leaving, self.worker, *after]

    def settle(self) -> bool:
        """Make the successor the worker if it has taken the place; return whether it has.

        The control page of the processes before tells: a successor writes to it before it serves.
        The page is closed if they have ended before. Then the successor's own page tells.
        """
        successor, state = self.successor, self.worker.standby.state
        if successor is None or not successor.report.serving:
            return False
        if state is None or state.ended is not control.End.REPLACED:
            after = successor.standby.state
            if not self.worker.ended.is_set() or after is None or not after.settled:
                return False
        successor.report = self.worker.report  # the session goes on
        self.leaving.append(self.worker)
        self.worker, self.successor = successor, None
        self.program_note = ""
        return True

    def close_fuse_fd(self) -> None:
        """Close the descriptor of /dev/fuse; the last one that closes ends the connection."""
        fd, self._fuse_fd = self._fuse_fd, -1
        if fd >= 0:
            os.close(fd)

    def end_connection(self) -> None:
        """Close the descriptor of /dev/fuse; abort the connection if a process keeps it open."""
        self.close_fuse_fd()
        if self.worker.is_outlived:
            self.abort()

    def abort(self) -> None:
        """End the connection, so that no user waits for an answer; log a failure."""
        # A mount that is gone does not keep the number of its device.
        if self.device in [entry.device for entry in mountpoints.mounts_at(self.target)]:
            try:
                fuse_mount.abort(self.device)
            except OSError as error:
                volume = self.worker.volume
                log.warning("volume %s: users may hang, no abort was possible: %s", volume, error)

    def is_whole(self) -> bool:
        """Return whether the worker lives, and this mount is the only one at its mount point."""
        found = [entry.device for entry in mountpoints.mounts_at(self.target)]
        return not self.loss and not self.detached and found == [self.device]

    def record(self, name: VolumeName, report: Report | None = None) -> MountRecord:
        """Return the facts that the next plugin needs to adopt this mount of volume *name*.

        *report* replaces that of its worker. A detached mount has no device: a later mount at the
        same mount point may have the same one.
        """
        device = NO_DEVICE if self.detached else self.device
        text = encode(report or self.worker.report).decode()
        return MountRecord(name, self.number, device, text)

    def let_options(self, config: Requested) -> None:
        """Let the timeouts and the log level of *config* be in force; all else is the mount's own.

        Raises:
            OSError: the worker's timeouts cannot be reached.
        """
        self.worker.let_options(config)
        for worker in self.workers:
            worker.standby.change_timeouts(timeouts(config))

    def restore_timeouts(self) -> None:
        """Let the timeouts be in force that the registry has; the plugin before may have died."""
        if (config := self.worker.report.config) is not None:
            try:
                self.let_options(config)
            except OSError as error:
                log.warning(
                    "volume %s: its mount may go on with earlier timeouts: %s",
                    *(self.worker.volume, error.strerror),
                )

    @contextmanager
    def duplicated_descriptors(self) -> Iterator[dict[str, int]]:
        """Duplicate all descriptors for the fd store, by key; the block's end closes them.

        The originals may be closed at any time, when the worker ends.

        Raises:
            OSError: the worker has ended, or the limit of descriptors is reached.
        """
        with duplicated({FUSE: self._fuse_fd, **self.worker.descriptors()}) as duplicates:
            yield duplicates


@contextmanager
def duplicated(originals: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Duplicate the descriptors *originals*; the block's end closes the duplicates.

    Raises:
        OSError: an original is closed, or the limit of descriptors is reached.
    """
    with ExitStack() as stack:
        duplicates = {}
        for key, original in originals.items():
            duplicates[key] = os.dup(original)
            stack.callback(os.close, duplicates[key])
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
    adopted, ended = Adopted({}, []), dict[int, list[str]]()
    for number, stored in inherited.stored.items():
        record = records.get(number)
        name = VolumeName(UNKNOWN_VOLUME) if record is None else record.volume
        target = mountpoints.path_of(mount_dir, used.get(name, FileName(UNKNOWN_VOLUME)))
        workers, ended[number] = _adopt_workers(name, record, stored, proc)
        if not workers:
            log.debug("volume %s: its worker has ended, or its descriptors were lost", name)
            ended[number] = [*stored]
            if FUSE in stored:
                os.close(stored[FUSE])
            continue
        found = _adopted(target, number, record, stored.get(FUSE, -1), workers)
        if (
            record is not None
            and record.volume in used
            and _is_whole(mounts.get(found.target, []), record, found)
        ):
            adopted.whole[record.volume] = found
            found.restore_timeouts()
        else:
            found.detached = True
            found.close_fuse_fd()
            adopted.detached.append(found)
    inherited.store.remove(ended)
    return adopted


def _is_whole(mounts: Iterable[mountinfo.MountEntry], record: MountRecord, mount: Mount) -> bool:
    devices = [entry.device for entry in mounts]
    return devices == [record.device] and mount.fuse_fd >= 0


def _adopt_workers(
    name: VolumeName, record: MountRecord | None, stored: Mapping[str, int], proc: Path
) -> tuple[list[Worker], list[str]]:
    """Return the live workers of *stored*, the last first, and the keys of those that have ended.

    Descriptors of those that have ended are closed.
    """
    workers, ended = [], list[str]()
    for turn, descriptors in turns(stored).items():
        worker = Worker(name, descriptors.get("control", -1), turn)
        if not descriptors.keys() >= {*PROCESS_KINDS} or _have_ended(descriptors):
            ended += worker.keys
            for fd in descriptors.values():
                os.close(fd)
        else:
            worker.adopt(Process.from_descriptors(descriptors, proc), _report_of(record))
            workers.append(worker)
    return workers, ended


def _adopted(
    target: Path, number: int, record: MountRecord | None, fuse_fd: int, workers: Sequence[Worker]
) -> Mount:
    """Return the mount *number* with its *workers*, the last first."""
    device = NO_DEVICE if record is None else record.device
    mount = Mount(target, mountpoints.FuseConnection(fuse_fd, device), workers[-1], number)
    mount.source_unchecked = True
    for worker in workers[-2::-1]:
        mount.successor = worker
        mount.settle()
    return mount


def _report_of(record: MountRecord | None) -> Report:
    if record is not None:
        try:
            return decode_report(record.report.encode())
        except msgspec.DecodeError:  # another version wrote it; the report is only shown
            log.debug("volume %s: its worker's report is of another version", record.volume)
    return Report(serving=True)


def _have_ended(descriptors: Mapping[str, int]) -> bool:
    """Return whether all processes of the mount have ended.

    With a standby, the first guard may have ended alone. The log ends with the last process.
    """
    if not has_ended(descriptors["process"]):
        return False
    if "control" not in descriptors:
        return True
    poll = select.poll()
    poll.register(descriptors["log"], 0)  # poll(2) always reports POLLHUP
    return bool(poll.poll(0))
