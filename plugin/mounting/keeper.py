"""Keeps the mounts of volumes: mount point, descriptor of /dev/fuse, worker process.

A mount is made in steps, each undone if a later one fails: open the source, make the mount point,
mount(2), start the worker, wait until it says that it serves. It is taken down by detaching it
(MNT_DETACH): its mount point goes at once, and its worker serves on until the last user is gone,
then ends by itself.

Where a service manager keeps what workers hang on (fd_store.py), they and their mounts go on
while the plugin restarts. The keeper takes over what is whole, and clears the rest away.

The keeper holds a duplicate of the descriptor of /dev/fuse. As long as it does, requests of a dead
worker's users wait. Today nobody succeeds a worker that died, so the keeper lets go of its
duplicate then: the kernel ends the connection, and users get ENOTCONN instead of waiting for ever.
The dead mount stays where it is, visibly broken, until the next Mount or Unmount.

Mounts are made and taken down by one caller per volume at a time; the driver's locks see to that.
"""

import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple, Protocol

import trio

from passthrough.options.effective import Effective
from passthrough.worker.handover import Handover, Report
from plugin import threads
from plugin.errors import MountFailed
from plugin.mounting import mountpoints
from plugin.mounting.detaching import UNDO_DEADLINE_S, Detaching, clear, clear_all
from plugin.mounting.fd_store import NOTHING, Inherited, Store
from plugin.mounting.mount import Mount, TakenOver, take_over
from plugin.mounting.spawner import COMMAND, PROC, Start, forking
from plugin.mounting.worker import Worker
from plugin.reserve import HiddenReserve, Reserve
from plugin.volume import FileName, Served, VolumeName

log = logging.getLogger(__name__)

# All steps of a mount together, and the waiting for its turn. dockerd gives up after 120 s, but an
# administrator may have it give up after 30 (docker plugin enable --timeout), and our own words say
# more than "timeout". Ending the worker and unmounting, after a failure, come on top.
MOUNT_DEADLINE_S = 18.0

# Threads for mount(2) and umount2(2). They end, unless a worker hangs while its mount goes.
KERNEL_THREADS = 64


class Order(NamedTuple):
    """What to mount."""

    name: VolumeName
    directory: FileName
    """The name of the mount point."""
    options: Effective
    origin: str
    """The source, as a person knows it."""
    open_source: Callable[[], int]
    """Returns an O_PATH descriptor that the caller owns; may block for ever."""
    limiter: trio.CapacityLimiter
    """For the threads that may hang in *open_source*."""
    deadline: float
    """When the attempt is given up, by trio's clock; `MOUNT_DEADLINE_S` after the request."""
    lost: Callable[[str], None]
    """Called with how it ended when the worker ends though the volume is still mounted."""
    step: Callable[[str], object] = lambda _: None
    """Called with each step that may hang."""


class Run(Protocol):
    """Stays with a worker until it has ended; gives how."""

    async def __call__(self, *, task_status: trio.TaskStatus[None]) -> str:
        """Started once the worker serves."""


class Keeper:
    """The mounts of all volumes below one directory; made by `keeping`."""

    def __init__(
        self,
        mount_dir: Path,
        nursery: trio.Nursery,
        start: Start,
        store: Store,
        numbers: Iterator[int],
        *,
        reserve: Reserve,
    ) -> None:
        """*numbers* are those by which *store* knows new mounts; *reserve* is for mount points."""
        self._reserve = reserve
        self._mount_dir = mount_dir
        self._nursery = nursery
        self._start = start
        self._store = store
        self._numbers = numbers
        self._mounts: dict[VolumeName, Mount] = {}
        # These and those that have been taken down, as long as their workers run.
        self._served: dict[VolumeName, list[Mount]] = {}
        self._threads = trio.CapacityLimiter(KERNEL_THREADS)
        self._detaching = Detaching()

    def target(self, directory: FileName) -> Path:
        """Return the mount point of the volume whose record says *directory*."""
        return mountpoints.at(self._mount_dir, directory)

    def served(self, name: VolumeName) -> list[Served]:
        """What a later plugin must know to go on with those mounts of *name* that it can."""
        return [mount.served(name) for mount in self._running(name) if mount.worker.kept]

    def watch(self, name: VolumeName, tell_loss: Callable[[str], None]) -> bool:
        """Whether *name* is served since before this plugin began; *tell_loss* is as in an Order.

        A loss before this is not told, but makes it false.
        """
        if not self.worker_pid(name):
            return False
        self._mounts[name].tell_loss = tell_loss
        return True

    def worker_pid(self, name: VolumeName) -> int:
        """The process that serves *name*; 0 when there is none."""
        present = self._mounts.get(name)
        return 0 if present is None or present.lost else present.worker.pid

    def report(self, name: VolumeName) -> Report | None:
        """What the worker of *name* has said of itself; None when it is not mounted."""
        present = self._mounts.get(name)
        return None if present is None else present.worker.report

    async def mount(self, order: Order) -> Mount:
        """Mount a volume and return its mount, which is the present one if that is whole.

        The mount belongs to the keeper. Its facts are live: `lost` is set when its worker dies.

        Raises:
            MountFailed: says what failed or hung; nothing is left of the attempt.
            PluginError: the source cannot be opened.
        """
        present = self._mounts.get(order.name)
        if present is not None:
            with _step(order, "looking at its mount"):
                whole = await threads.call(present.is_whole, self._threads, bool)
            if whole:
                await self._go_on_with(present, order)
                return present
            log.warning("volume %s: its mount is not whole, making a new one", order.name)
            await self.unmount(order.name)
        made = self._mounts[order.name] = await self._mount_anew(order)
        log.info("volume %s: mounted, worker %d", order.name, made.worker.pid)
        return made

    async def _go_on_with(self, present: Mount, order: Order) -> None:
        """Give one more user a mount that is whole, if it may be given."""
        if present.unchecked:  # what may be served may have changed since an earlier plugin began
            with _step(order, f"opening {order.origin}"):
                os.close(await threads.call(order.open_source, order.limiter, os.close))
            present.unchecked = False
        if not present.worker.kept and self._store.keeps:
            # It had no time to say that it keeps them, and may have taken some all the same.
            await trio.to_thread.run_sync(self._store.forget, [present.number])
            await self._keep(present)

    async def unmount(self, name: VolumeName, deadline: float = math.inf) -> None:
        """Detach the mount of *name*, if there is one; its worker serves those who still use it.

        A worker that has not answered by *deadline*, trio's clock, is ended.

        Raises:
            MountFailed: the mount is still there.
        """
        present = self._mounts.get(name)
        if present is not None:
            await self._detaching.take_down(present, deadline)
            del self._mounts[name]
            log.info("volume %s: unmounted", name)

    async def vacated(self, name: VolumeName, deadline: float) -> bool:
        """Whether by *deadline*, trio's clock, nobody uses *name* any more, which is not mounted.

        The kernel ends the worker's session when the last one has gone who has a file of it open,
        is in a directory of it, or has a bind mount of it, such as a container.
        """
        with trio.move_on_at(deadline):
            for mount in self._served.get(name, ()):
                await mount.worker.ended.wait()
        return not self._running(name)

    def _running(self, name: VolumeName) -> list[Mount]:
        """The mounts of *name* that are served; the others are forgotten."""
        mounts = self._served.pop(name, ())
        running = [mount for mount in mounts if not mount.worker.ended.is_set()]
        if running:
            self._served[name] = running
        return running

    async def end(self) -> None:
        """Detach every mount but those that the service manager keeps, if short time allows it."""
        others = []
        for mount in self._mounts.values():
            if mount.worker.kept:
                mount.let_go()
            else:
                others.append(mount)
        await self._detaching.take_all_down(self._mount_dir, others)
        self._mounts.clear()

    def take_over(self, left: TakenOver) -> None:
        """Go on with what an earlier plugin has left."""
        for name, mount in left.whole.items():
            log.info("volume %s: served on by worker %d", name, mount.worker.pid)
            self._mounts[name] = mount
        for mount in (*left.whole.values(), *left.leaving):
            self._served.setdefault(mount.worker.volume, []).append(mount)
            self._nursery.start_soon(self._attend, mount, mount.worker.attend)

    async def _mount_anew(self, order: Order) -> Mount:
        name, target = order.name, self.target(order.directory)
        with ExitStack() as borrowed:
            with _step(order, f"opening {order.origin}"):
                source_fd = await threads.call(order.open_source, order.limiter, os.close)
            borrowed.callback(os.close, source_fd)
            async with AsyncExitStack() as undo:
                with _step(order, f"mounting at {target}"):
                    await clear(target, self._threads)
                    attach = partial(mountpoints.attach, target, order.options, self._reserve)
                    attached = await trio.to_thread.run_sync(attach)
                made = Mount(target, attached, Worker(name), next(self._numbers), order.lost)
                undo.push_async_callback(self._undo, made)
                handover = Handover(
                    volume=order.directory,
                    config=order.options.requested,
                    fuse_fd=attached.fuse_fd,
                    source_fd=source_fd,
                )
                with _step(order, "starting its worker", made.worker):
                    run = partial(made.worker.run, self._start, handover, order.options.session)
                    await self._nursery.start(self._attend, made, run)
                self._served[name] = [*self._running(name), made]
                await self._keep(made)
                if made.lost:
                    raise MountFailed(f"volume {name!r}: its worker {made.lost} at once")
                undo.pop_all()
                return made

    async def _keep(self, made: Mount) -> None:
        """Have the service manager keep what it takes to go on with *made*."""
        if not self._store.keeps or made.lost:
            return
        try:
            with made.duplicated() as descriptors:
                await trio.to_thread.run_sync(self._store.keep, made.number, descriptors)
        except OSError as error:
            log.warning("%s is served, but it will end with the plugin: %s", made.target, error)
        else:
            made.worker.kept = True

    async def _attend(
        self,
        mount: Mount,
        run: Run,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Stay with the worker of *mount*, as *run* does, which is started once it serves."""
        worker = mount.worker
        try:
            ended = await run(task_status=task_status)
        except Exception:  # a boundary, as the server's: a bug in serving one volume ends no other
            if not worker.report.serving:
                raise  # to the Mount that waits for it
            log.exception("volume %s: bug in watching worker %d", worker.volume, worker.pid)
            worker.kill()
            ended = "is watched no more, because of a bug; the plugin's log says more"
        worker.kept = False
        if mount.leaving:
            log.info("volume %s: worker %d %s", worker.volume, worker.pid, ended)
        else:
            mount.lost = ended
            mount.let_go()
            log.warning(
                "volume %s: worker %d %s; the volume fails until it is mounted again",
                worker.volume,
                worker.pid,
                ended,
            )
            mount.tell_loss(f"its worker {ended}")
        if self._store.keeps:
            await trio.to_thread.run_sync(self._store.forget, [mount.number])

    async def _undo(self, made: Mount) -> None:
        await self._detaching.take_down(made, trio.current_time() + UNDO_DEADLINE_S)


@asynccontextmanager
async def keeping(
    mount_dir: Path,
    command: Sequence[str] = COMMAND,
    inherited: Inherited = NOTHING,
    served: Collection[Served] = (),
    used: Mapping[VolumeName, FileName] | None = None,
    *,
    proc: Path = PROC,
    reserve: Reserve | None = None,
) -> AsyncIterator[Keeper]:
    """A keeper of mounts below *mount_dir*, which is made.

    Of the mounts that an earlier plugin has left, those *served* of volumes that are *used*, at
    mount points of these names, go on if they are whole, with what the service manager hands over.
    At the end it is left what it keeps. Nothing else remains there, before and after: workers,
    which are forked by a process that runs *command*, are ended, whoever still uses what they
    serve. On a full disk *reserve* has room for mount points, if it is the same disk.

    Raises:
        CannotStart: another plugin mounts volumes there.
        OSError: the directory cannot be made or read.
    """
    numbers = count(1 + max([*inherited.kept, *(row.number for row in served)], default=0))
    with mountpoints.claimed(mount_dir) as claimed:
        left = take_over(claimed, inherited, served, used or {}, proc)
        await clear_all(claimed, left, inherited.store)
        async with forking(command, proc) as start, trio.open_nursery() as nursery:
            with HiddenReserve(claimed, reserve) as room:
                keeper = Keeper(claimed, nursery, start, inherited.store, numbers, reserve=room)
                keeper.take_over(left)
                try:
                    yield keeper
                finally:
                    with trio.CancelScope(shield=True):
                        await keeper.end()
                    nursery.cancel_scope.cancel()


@contextmanager
def _step(order: Order, what: str, worker: Worker | None = None) -> Iterator[None]:
    """A part of mounting that may hang; at the order's deadline, the refusal names it."""
    order.step(what)
    try:
        with trio.fail_at(order.deadline):
            yield
    except trio.TooSlowError as error:
        last_words = "" if worker is None else worker.last_words
        raise MountFailed(
            f"volume {order.name!r}: {what} has not come to an end,"
            f" {MOUNT_DEADLINE_S:g} s after it was to be mounted{last_words}"
        ) from error
    except OSError as error:
        raise MountFailed(f"volume {order.name!r}: {what} failed: {error.strerror}") from error
