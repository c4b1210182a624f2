"""The keeper: makes the mounts of volumes, keeps them served, and takes them down.

A mount is made in steps: open the source, make the mount point, mount(2), start the worker, wait
for its report. If a step fails, the earlier steps are undone. The steps that may hang share one
deadline, `MountSpec.deadline`: MOUNT_DEADLINE_S from the request on. Storing the descriptors,
writing the registry and the undo may take longer.

A mount is taken down by detaching it (MNT_DETACH). Its mount point becomes free at once. Its worker
serves until the last user is gone, then ends by itself.

If a service manager stores the descriptors of mounts (fd_store.py), they and their workers go on
while the plugin restarts. The next keeper adopts whole mounts, and clears the others away.

The keeper lets processes of the plugin's own program take over adopted mounts (succession.py).

The keeper holds a duplicate of each mount's descriptor of /dev/fuse. While the duplicate is open,
requests to a dead worker wait. If the worker had a standby, a guard replaces it. Once all processes
of a mount have ended, nothing replaces them, so the keeper closes its duplicate. The kernel then
ends the connection, and users get ENOTCONN instead of waiting for ever. The dead mount stays at its
mount point, visibly broken, until the next Mount or Unmount.

Callers change the mount of one volume one at a time; the driver's locks see to that.
"""

import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Protocol

import trio

from passthrough.worker import control
from passthrough.worker.handover import Handover, Report
from plugin import events, threads
from plugin.errors import MountFailed
from plugin.mounting import mountpoints, succession
from plugin.mounting.detaching import UNDO_DEADLINE_S, Detacher, clear_all, detach_target
from plugin.mounting.fd_store import NOTHING_INHERITED, FdStore, Inherited
from plugin.mounting.mount import Adopted, Mount, adopt_mounts
from plugin.mounting.mount_spec import MountSpec, step
from plugin.mounting.process import PROC
from plugin.mounting.spawner import COMMAND, StartWorker, spawning
from plugin.mounting.standby import Deaths
from plugin.mounting.succession import ServedBy
from plugin.mounting.worker import Worker
from plugin.reserve import HiddenReserve, Reserve
from plugin.volume import FileName, MountRecord, VolumeName

log = logging.getLogger(__name__)

# Threads for umount2(2), and to read the mount table. They end, unless a worker hangs while its
# mount is detached.
KERNEL_THREADS = 64


class Supervise(Protocol):
    """A coroutine function that waits for the end of a worker and returns how it ended."""

    async def __call__(self, *, task_status: trio.TaskStatus[None]) -> str:
        """Call `task_status.started` once the worker serves."""


class Keeper:
    """The mounts of all volumes below one directory; made by `keeping`."""

    def __init__(
        self,
        mount_dir: Path,
        nursery: trio.Nursery,
        start: StartWorker,
        store: FdStore,
        numbers: Iterator[int],
        *,
        reserve: Reserve,
        program: str,
    ) -> None:
        """*numbers* yields the numbers of new mounts; *reserve* has room for mount points.

        *program* identifies the program of new workers (program.py).
        """
        self._reserve = reserve
        self.program = program
        self.mount_dir = mount_dir
        self._nursery = nursery
        self._start = start
        self._store = store
        self._numbers = numbers
        self._mounts: dict[VolumeName, Mount] = {}
        # All mounts with live workers, detached mounts among them.
        self._live: dict[VolumeName, list[Mount]] = {}
        self._threads = trio.CapacityLimiter(KERNEL_THREADS)
        self._detacher = Detacher()

    def target(self, directory: FileName) -> Path:
        """Return the mount point of a volume, by the *directory* of its record."""
        return mountpoints.path_of(self.mount_dir, directory)

    def mount_records(self, name: VolumeName) -> list[MountRecord]:
        """Return a record of each mount of *name* that the next plugin can adopt."""
        return [mount.record(name) for mount in self.live_mounts(name) if mount.worker.stored]

    def watch(self, name: VolumeName, on_loss: Callable[[str], None]) -> Mount | None:
        """Return the mount of *name* that was adopted, or None; *on_loss* is as in a MountSpec.

        If its worker has ended by now, the result is None, and *on_loss* is not called.
        """
        if not self.is_served(name):
            return None
        self._mounts[name].on_loss = on_loss
        return self._mounts[name]

    def is_served(self, name: VolumeName) -> bool:
        """Return whether *name* is mounted and not lost."""
        return name in self._mounts and not self._mounts[name].loss

    def worker_pid(self, name: VolumeName) -> int:
        """Return the process id of the worker that serves *name*, or 0."""
        return self._mounts[name].worker.pid if self.is_served(name) else 0

    def deaths(self, name: VolumeName) -> Deaths | None:
        """Return the deaths of the workers of *name*; None if it has no standby."""
        return self._mounts[name].worker.standby.deaths() if name in self._mounts else None

    def report(self, name: VolumeName) -> Report | None:
        """Return the report of the worker of *name*, or None if *name* is not mounted."""
        return self._mounts[name].worker.report if name in self._mounts else None

    def mounted(self, name: VolumeName) -> Mount | None:
        """Return the mount of *name*, which may be lost; None if there is none."""
        return self._mounts.get(name)

    async def mount(self, spec: MountSpec) -> Mount:
        """Mount a volume and return its mount; a present mount that is whole stays.

        The mount belongs to the keeper. Its facts are live: `loss` is set when its worker dies.

        Raises:
            MountFailed: says what failed or hung; nothing is left of the attempt.
            PluginError: the source cannot be opened.
        """
        present = self._mounts.get(spec.name)
        if present is not None:
            with step(spec, "checking its mount"):
                whole = await threads.call(present.is_whole, self._threads, bool)
            if whole:
                await self._reuse(present, spec)
                return present
            events.tell(events.NOT_WHOLE, spec.name)
            await self.unmount(spec.name)
        self._mounts[spec.name] = await self._make_mount(spec)
        return self._mounts[spec.name]

    async def _reuse(self, present: Mount, spec: MountSpec) -> None:
        """Prepare *present* for one more reference.

        If an earlier plugin opened the source, check it again. If the descriptors could not be
        stored before, store them.
        """
        if present.source_unchecked:
            # The allowed sources may have changed since an earlier plugin opened the source.
            with step(spec, f"opening {spec.origin}"):
                os.close(await threads.call(spec.open_source, spec.limiter, os.close))
            present.source_unchecked = False
        if not present.worker.stored and self._store.exists:
            # The service manager did not confirm in time, but may have stored some descriptors.
            await trio.to_thread.run_sync(self._store.remove, {present.number: present.keys})
            await self._store_descriptors(present)

    def programs(self) -> list[ServedBy]:
        """Return the programs that serve the mounts, and older ones that serve detached mounts."""
        mounted = [succession.served_by(name, mount) for name, mount in self._mounts.items()]
        live = [(name, mount) for name in [*self._live] for mount in self.live_mounts(name)]
        detached = [succession.served_by(*each) for each in live if each[1].detached]
        return [*mounted, *(each for each in detached if each.note)]

    def program_note(self, name: VolumeName) -> str:
        """Return why an older program serves *name*; empty if none does."""
        return self._mounts[name].program_note if self.is_served(name) else ""

    def note_failure(self, name: VolumeName, reason: str) -> None:
        """Note why `replace` has failed for *name*, if an older program serves it on."""
        if self.program_note(name):
            self._mounts[name].program_note = reason

    async def replace(self, name: VolumeName) -> None:
        """Let processes of the plugin's own program take over the mount of *name*, if possible.

        `Mount.program_note` has the reason if an older program serves on.
        """
        if self.program_note(name):
            await self._mounts[name].resolved.wait()
        if self.program_note(name):
            supervise = partial(self._nursery.start, self._supervise)
            own = (self.program, self._start, self._store, supervise)
            await succession.replace(self._mounts[name], *own)

    async def unmount(self, name: VolumeName, deadline: float = math.inf) -> bool:
        """Detach the mount of *name*; return whether there was one.

        The worker serves the remaining users of the mount.

        A worker that does not answer until *deadline*, by trio's clock, is killed.

        Raises:
            MountFailed: the mount is still there.
        """
        if (present := self._mounts.get(name)) is None:
            return False
        await self._detacher.detach(present, deadline)
        del self._mounts[name]
        return True

    async def wait_until_unused(self, name: VolumeName, deadline: float) -> bool:
        """Wait until the detached mounts of *name* have no users; return False at *deadline*.

        The kernel ends a worker's session after its last user has gone. A user is a process with an
        open file or its working directory there, or a bind mount, as a container has one. The
        deadline is by trio's clock.
        """
        with trio.move_on_at(deadline):
            for mount in self._live.get(name, ()):
                for worker in mount.workers:
                    await worker.ended.wait()
        return not self.live_mounts(name)

    def live_mounts(self, name: VolumeName) -> list[Mount]:
        """Return the mounts of *name* with live workers, and forget the others.

        A successor that has not taken its worker's place yet is a live worker, too.
        """
        mounts = self._live.pop(name, ())
        live = [m for m in mounts if not all(worker.ended.is_set() for worker in m.workers)]
        if live:
            self._live[name] = live
        return live

    def note_end(self) -> None:
        """Note that the plugin ends, so that `close` knows how much time is left for it."""
        self._detacher.note_end()

    async def close(self) -> None:
        """Detach every mount that the service manager does not store, as far as time allows."""
        not_stored = []
        for mount in self._mounts.values():
            if mount.worker.stored:
                mount.close_fuse_fd()
            else:
                not_stored.append(mount)
        await self._detacher.detach_all(self.mount_dir, not_stored)
        self._mounts.clear()
        for mount in not_stored:
            events.tell(events.UNMOUNTED, mount.worker.volume)

    def adopt(self, adopted: Adopted) -> None:
        """Keep and supervise the mounts of an earlier plugin."""
        for name, mount in adopted.whole.items():
            self._mounts[name] = mount
        for mount in (*adopted.whole.values(), *adopted.detached):
            self._live.setdefault(mount.worker.volume, []).append(mount)
            for worker in mount.workers:
                self._nursery.start_soon(self._supervise, mount, worker, worker.supervise)
            succession.note(mount, self.program)
            if len(mount.workers) > 1 or mount.worker.turn:
                mount.resolved = trio.Event()
                own = (self.program, self._store)
                self._nursery.start_soon(succession.resolve, mount, *own)

    async def _make_mount(self, spec: MountSpec) -> Mount:
        name, target = spec.name, self.target(spec.directory)
        with ExitStack() as borrowed:
            with step(spec, f"opening {spec.origin}"):
                source_fd = await threads.call(spec.open_source, spec.limiter, os.close)
            borrowed.callback(os.close, source_fd)
            async with AsyncExitStack() as undo:
                with step(spec, f"mounting at {target}"):
                    worker = Worker(name, control.make(self.program))
                    undo.callback(worker.standby.close)
                    await detach_target(target, self._threads)
                    attach = partial(mountpoints.attach, target, spec.options, self._reserve)
                    connection = await trio.to_thread.run_sync(attach)
                made = Mount(target, connection, worker, next(self._numbers), spec.on_loss)
                undo.push_async_callback(self._undo, made)
                handover = Handover(
                    volume=spec.directory,
                    config=spec.options.requested,
                    fuse_fd=connection.fuse_fd,
                    source_fd=source_fd,
                )
                with step(spec, "starting its worker", made.worker):
                    run = partial(made.worker.run, self._start, handover, spec.options.session)
                    await self._nursery.start(self._supervise, made, worker, run)
                self._live[name] = [*self.live_mounts(name), made]
                await self._store_descriptors(made)
                if made.loss:
                    raise MountFailed(f"volume {name!r}: its worker {made.loss} at once")
                undo.pop_all()
                return made

    async def _store_descriptors(self, mount: Mount) -> None:
        """Have the service manager store the descriptors of *mount*, if there is one."""
        if not self._store.exists or bool(mount.loss):  # mypy: it may change below
            return
        try:
            with mount.duplicated_descriptors() as descriptors:
                await trio.to_thread.run_sync(self._store.add, mount.number, descriptors)
        except OSError as error:
            volume = mount.worker.volume
            log.warning("volume %s: its mount will end with the plugin: %s", volume, error)
        else:
            mount.worker.stored = not mount.loss
            if mount.loss:  # meanwhile
                await trio.to_thread.run_sync(self._store.remove, {mount.number: mount.keys})

    async def _supervise(
        self,
        mount: Mount,
        worker: Worker,
        supervise: Supervise,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Await *supervise*, which is for *worker* of *mount*, and handle the worker's end."""
        try:
            ended = await supervise(task_status=task_status)
        except Exception:  # a boundary, as in the server: a bug costs one volume, not all of them
            if not worker.report.serving:
                raise  # to the Mount request that waits for the start
            log.exception("volume %s: bug in supervising worker %d", worker.volume, worker.pid)
            worker.kill()
            ended = "is not supervised any more, because of a bug; see the plugin's log"
        worker.stored = False
        succession.note_end(mount, worker)
        await succession.wait_for_successor(mount, worker)
        keys = mount.keys if worker is mount.worker else worker.keys
        if worker is not mount.worker:
            log.debug("volume %s: processes of another program have ended", worker.volume)
        elif mount.detached:
            log.debug("volume %s: worker %d %s", worker.volume, worker.pid, ended)
        else:
            mount.loss = ended
            mount.end_connection()
            events.tell(events.LOST, worker.volume, worker=worker.pid, cause=ended)
            mount.on_loss(f"its worker {ended}")
        if self._store.exists:
            removed = await trio.to_thread.run_sync(self._store.remove, {mount.number: keys})
            if mount.loss and not (removed or mount.detached):  # a stored descriptor: users wait
                mount.abort()

    async def _undo(self, made: Mount) -> None:
        await self._detacher.detach(made, trio.current_time() + UNDO_DEADLINE_S)


@asynccontextmanager
async def keeping(
    mount_dir: Path,
    command: Sequence[str] = COMMAND,
    inherited: Inherited = NOTHING_INHERITED,
    mount_records: Collection[MountRecord] = (),
    used: Mapping[VolumeName, FileName] | None = None,
    *,
    proc: Path = PROC,
    reserve: Reserve | None = None,
    program: str = "",
) -> AsyncIterator[Keeper]:
    """Run a keeper of mounts below *mount_dir*, which is made.

    At the start, whole mounts of an earlier plugin go on; others are cleared away. *inherited* has
    the descriptors of these mounts, *mount_records* their facts. *used* has the name of the mount
    point of each volume with references. At the end, the mounts that the service manager stores go
    on. Others are detached and their workers ended, even if they have users.

    *command* runs the fork server, of the program *program*. *proc* is the procfs for process ids.
    *reserve* has room for mount points on a full disk, if it is on the same file system.

    Raises:
        CannotStart: another plugin mounts volumes there.
        OSError: the directory cannot be made or read.
    """
    numbers = count(
        1 + max([*inherited.stored, *(record.number for record in mount_records)], default=0)
    )
    with mountpoints.locked(mount_dir) as directory:
        adopted = adopt_mounts(directory, inherited, mount_records, used or {}, proc)
        await clear_all(directory, adopted, inherited.store)
        async with spawning(command, proc) as start, trio.open_nursery() as nursery:
            with HiddenReserve(directory, reserve) as hidden:
                own = (directory, nursery, start, inherited.store, numbers)
                keeper = Keeper(*own, reserve=hidden, program=program)
                keeper.adopt(adopted)
                try:
                    yield keeper
                finally:
                    with trio.CancelScope(shield=True):
                        await keeper.close()
                    nursery.cancel_scope.cancel()
