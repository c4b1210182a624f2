"""Detaches mounts, with a deadline for each: workers that do not answer are killed.

umount2(2) with MNT_DETACH removes a mount from its mount point at once. The call waits only if a
live worker does not answer and the kernel has pages left to write. So each call has a thread and a
deadline.
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
from plugin.mounting.fd_store import FdStore
from plugin.mounting.mount import Adopted, Mount

log = logging.getLogger(__name__)

# Detaching is quick unless the last user leaves dirty pages to a worker that does not answer.
UNMOUNT_DEADLINE_S = 3.0
# The minimum for a request that has spent its time waiting for earlier requests.
UNMOUNT_MIN_S = 0.5
# After a Mount that has failed: the mount has had no users.
UNDO_DEADLINE_S = 1.0
# At shutdown all mounts are detached in parallel, in the first second. Each mount that is detached
# moves the deadline of the others, up to SHUTDOWN_LIMIT_S after the signal: the engine gives the
# plugin 10 s, of which requests in flight take up to 3.5 before, and AFTER_KILL_S and the ends of
# the workers and of the fork server 3.5 after it.
SHUTDOWN_DEADLINE_S = 1.0
SHUTDOWN_LIMIT_S = 6.0
# The minimum for a mount that gets its thread late. A worker that answers needs milliseconds.
SHUTDOWN_MIN_S = 0.25
# The kernel detaches the mount of a killed worker within milliseconds.
AFTER_KILL_S = 0.5

# Threads for umount2(2). They end, unless a worker hangs while its mount is detached.
THREADS = 64


class Detacher:
    """The threads in which mounts are detached."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(THREADS)
        self._ending_since = math.inf

    def note_end(self) -> None:
        """Note that the plugin ends, from now on."""
        self._ending_since = min(trio.current_time(), self._ending_since)

    async def detach(self, mount: Mount, deadline: float = math.inf) -> None:
        """Detach *mount*; if umount2(2) has not returned at *deadline*, kill the worker.

        The deadline is by trio's clock, and at most UNMOUNT_DEADLINE_S from now. After the wait for
        a free thread, which is no fault of the worker, the worker has at least UNMOUNT_MIN_S.

        Raises:
            MountFailed: the mount is still there.
        """
        mount.detached = True
        deadline = min(trio.current_time() + UNMOUNT_DEADLINE_S, deadline)
        with trio.CancelScope(shield=True):
            await self._threads.acquire()
        try:
            least = trio.current_time() + UNMOUNT_MIN_S
            await _detach(mount, trio.CancelScope(deadline=max(deadline, least)))
        finally:
            self._threads.release()

    async def detach_all(self, mount_dir: Path, mounts: Iterable[Mount]) -> None:
        """Detach *mounts*, which are in *mount_dir*; a failure is logged.

        Workers are killed only once no worker has answered for SHUTDOWN_DEADLINE_S, because many
        live workers wait long for a processor.
        """
        # One read for all mounts: the length of the mount table grows with their number.
        present = await trio.to_thread.run_sync(mountpoints.mounts_below, mount_dir)
        began = trio.current_time()
        limit = min(began, self._ending_since) + SHUTDOWN_LIMIT_S
        pending = set[trio.CancelScope]()

        async def attempt(mount: Mount) -> None:
            mount.detached = True
            async with self._threads:
                least = trio.current_time() + SHUTDOWN_MIN_S
                scope = trio.CancelScope(deadline=max(began + SHUTDOWN_DEADLINE_S, least))
                pending.add(scope)
                try:
                    await _detach(mount, scope, present.get(mount.target, ()))
                except MountFailed as error:
                    log.warning("volume %s: %s", mount.worker.volume, error)
                finally:
                    pending.remove(scope)
            if not scope.cancelled_caught:
                later = min(trio.current_time() + SHUTDOWN_DEADLINE_S, limit)
                for other in pending:
                    other.deadline = max(other.deadline, later)

        async with trio.open_nursery() as nursery:
            for mount in mounts:
                nursery.start_soon(attempt, mount)


async def _detach(
    mount: Mount, scope: trio.CancelScope, present: Iterable[mountinfo.MountEntry] = ()
) -> None:
    """Detach *mount* and remove its mount point; kill its worker at the deadline of *scope*.

    *present* are the mounts at its mount point, if the caller has read the table.
    """
    volume = mount.worker.volume
    with trio.CancelScope(shield=True):
        try:
            with scope:
                await detach_target(mount.target, trio.CapacityLimiter(1), present)
            if scope.cancelled_caught:
                log.warning("volume %s: its worker does not answer and is killed", volume)
                mount.worker.kill()
                mount.close_fuse_fd()  # the kernel waits as long as the connection exists
                with trio.move_on_after(AFTER_KILL_S) as after_kill:
                    await detach_target(mount.target, trio.CapacityLimiter(1))
                if after_kill.cancelled_caught:
                    # The mount counts as gone: no worker serves it, and the next Mount or Remove
                    # clears the mount point.
                    log.warning("volume %s: umount2(2) still hangs after the kill", volume)
        except OSError as error:
            raise MountFailed(f"cannot unmount {mount.target}: {error.strerror}") from error
        finally:
            mount.close_fuse_fd()
        mountpoints.remove(mount.target)


async def detach_target(
    target: Path, limiter: trio.CapacityLimiter, present: Iterable[mountinfo.MountEntry] = ()
) -> None:
    """Call `mountpoints.detach` in a thread of *limiter*.

    Raises:
        OSError: as of `mountpoints.detach`.
    """
    await threads.call(partial(mountpoints.detach, target, present), limiter, lambda _: None)


async def clear_all(mount_dir: Path, adopted: Adopted, store: FdStore) -> None:
    """Clear *mount_dir* of everything but the whole mounts of *adopted*."""
    kept = [mount.target for mount in adopted.whole.values()]
    clear = partial(mountpoints.clear, mount_dir, kept)
    # The mount of a dead worker detaches at once, so only live workers need a deadline.
    with trio.move_on_after(UNMOUNT_DEADLINE_S if adopted.detached else math.inf) as scope:
        await threads.call(clear, trio.CapacityLimiter(1), lambda _: None)
    if scope.cancelled_caught:
        log.warning("%s: workers that do not answer are killed", mount_dir)
        for mount in adopted.detached:
            mount.worker.kill()
        # The stored descriptors of /dev/fuse would keep the connections alive.
        stored = {mount.number: mount.keys for mount in adopted.detached}
        await trio.to_thread.run_sync(store.remove, stored)
        await trio.to_thread.run_sync(clear)
