"""Takes mounts down: each is detached at once, and a worker that does not answer is ended.

The mount point goes with umount2(2), MNT_DETACH. That call waits only for a worker that lives and
answers nothing, if the kernel has pages left to write. So each call has a thread and a deadline.
"""

import logging
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import trio

from passthrough.linux import mountinfo
from plugin import threads
from plugin.errors import MountFailed
from plugin.mounting import mountpoints
from plugin.mounting.fd_store import Store
from plugin.mounting.mount import Mount, TakenOver

log = logging.getLogger(__name__)

# Detaching is quick unless the last user leaves dirty pages to a worker that does not answer.
UNMOUNT_DEADLINE_S = 3.0
# For who has waited so long for its turn that there is no time left.
UNMOUNT_LEAST_S = 0.5
# After a Mount that has failed: nobody has used it.
UNDO_DEADLINE_S = 1.0
# At shutdown all mounts go at once, in the first of the seconds that the engine gives us, which are
# 10; but while mounts go, it may take longer.
SHUTDOWN_DEADLINE_S = 1.0
SHUTDOWN_LIMIT_S = 3.0
# The rest, if workers hang on all threads by then: one that answers needs milliseconds.
SHUTDOWN_LEAST_S = 0.25
# For the kernel to be done with a mount whose worker has been killed: milliseconds.
AFTER_KILL_S = 0.5

# Threads for umount2(2). They end, unless a worker hangs while its mount goes.
THREADS = 64


class Detaching:
    """The threads in which mounts are taken down."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(THREADS)

    async def take_down(self, mount: Mount, deadline: float = math.inf) -> None:
        """Detach *mount*; a worker that lets the kernel wait until *deadline* is ended.

        The waiting for a free thread is no fault of the worker: it does not count.

        Raises:
            MountFailed: the mount is still there.
        """
        mount.leaving = True
        deadline = min(trio.current_time() + UNMOUNT_DEADLINE_S, deadline)
        with trio.CancelScope(shield=True):
            await self._threads.acquire()
        try:
            least = trio.current_time() + UNMOUNT_LEAST_S
            await _detach(mount, trio.CancelScope(deadline=max(deadline, least)))
        finally:
            self._threads.release()

    async def take_all_down(self, mount_dir: Path, mounts: Iterable[Mount]) -> None:
        """Detach *mounts*, which are in *mount_dir*; those that cannot be are logged.

        Workers are ended when no worker at all has answered for SHUTDOWN_DEADLINE_S: the more there
        are, the longer each of them waits for a processor.
        """
        # One look at the table for all of them: its length goes with their number.
        places = await trio.to_thread.run_sync(mountpoints.by_target, mount_dir)
        began = trio.current_time()
        waiting = set[trio.CancelScope]()

        async def attempt(mount: Mount) -> None:
            mount.leaving = True
            async with self._threads:
                least = trio.current_time() + SHUTDOWN_LEAST_S
                patience = trio.CancelScope(deadline=max(began + SHUTDOWN_DEADLINE_S, least))
                waiting.add(patience)
                try:
                    await _detach(mount, patience, places.get(mount.target, ()))
                except MountFailed as error:
                    log.warning("volume %s: %s", mount.worker.volume, error)
                finally:
                    waiting.remove(patience)
            if not patience.cancelled_caught:
                later = min(trio.current_time() + SHUTDOWN_DEADLINE_S, began + SHUTDOWN_LIMIT_S)
                for other in waiting:
                    other.deadline = max(other.deadline, later)

        async with trio.open_nursery() as nursery:
            for mount in mounts:
                nursery.start_soon(attempt, mount)


async def _detach(
    mount: Mount, patience: trio.CancelScope, present: Iterable[mountinfo.MountEntry] = ()
) -> None:
    """Detach *mount* with all that a sweep has found *present* there; end its worker after that."""
    with trio.CancelScope(shield=True):
        try:
            with patience:
                await clear(mount.target, trio.CapacityLimiter(1), present)
            if patience.cancelled_caught:
                log.warning("%s: its worker does not answer and is ended", mount.target)
                mount.worker.kill()
                mount.let_go()  # else the kernel goes on waiting
                with trio.move_on_after(AFTER_KILL_S):
                    await clear(mount.target, trio.CapacityLimiter(1))
        except OSError as error:
            raise MountFailed(f"cannot unmount {mount.target}: {error.strerror}") from error
        finally:
            mount.let_go()
        mountpoints.remove(mount.target)


async def clear(
    target: Path, limiter: trio.CapacityLimiter, present: Iterable[mountinfo.MountEntry] = ()
) -> None:
    """Unmount what is mounted at *target*, if it is ours, in a thread of *limiter*.

    Raises:
        OSError: it is not ours, or cannot be taken away.
    """
    await threads.call(partial(mountpoints.detach, target, present), limiter, lambda _: None)


async def clear_all(mount_dir: Path, left: TakenOver, store: Store) -> None:
    """Have nothing mounted in *mount_dir* but what goes on."""
    spared = [mount.target for mount in left.whole.values()]
    clear_rest = partial(mountpoints.clear, mount_dir, spared)
    # A mount whose workers are all dead detaches at once.
    with trio.move_on_after(UNMOUNT_DEADLINE_S if left.leaving else math.inf) as waiting:
        await threads.call(clear_rest, trio.CapacityLimiter(1), lambda _: None)
    if waiting.cancelled_caught:
        log.warning("%s: workers that do not answer are ended", mount_dir)
        for mount in left.leaving:
            mount.worker.kill()
        # As long as it keeps /dev/fuse, the connections go on without them.
        await trio.to_thread.run_sync(store.forget, [mount.number for mount in left.leaving])
        await trio.to_thread.run_sync(clear_rest)
