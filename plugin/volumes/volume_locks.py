"""One request at a time for each volume, each with a deadline by its verb.

Each volume has a lock of its own, so that a source that hangs delays no other volume. A lock exists
while a request holds it or waits for it, or while a thread hangs that opens or checks the source.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from plugin.errors import VolumeBusy, quoted
from plugin.mounting.mount_spec import MOUNT_DEADLINE_S

# To check a source takes milliseconds, or hangs for ever on a dead network file system. dockerd
# gives Create 120 s, but its user waits at a terminal.
SOURCE_DEADLINE_S = 10.0
# Longer than a Mount in flight may take, so that an Unmount or Remove after it succeeds.
RELEASE_DEADLINE_S = 24.0

# Seconds from `VolumeLocks.hold` on: they include the wait for earlier requests on the volume.
DEADLINES_S = {
    "Create": SOURCE_DEADLINE_S,
    # Of the `passfs` command (changing.py).
    "Set": SOURCE_DEADLINE_S,
    "Mount": MOUNT_DEADLINE_S,
    "Unmount": RELEASE_DEADLINE_S,
    "Remove": RELEASE_DEADLINE_S,
    # No request, but the plugin's own work after its start (plugin/mounting/succession.py).
    "Upgrade": RELEASE_DEADLINE_S,
}


class VolumeLock:
    """The lock of one volume; `verb`, `step` and `deadline` are of the request that holds it.

    If no request holds the lock, they are of the last holder.
    """

    __slots__ = ("deadline", "limiter", "mutex", "step", "verb")

    def __init__(self) -> None:
        self.mutex = trio.Lock()
        self.verb = ""
        self.step = ""
        self.deadline = 0.0
        # For a thread that opens or checks the source. If it hangs, it keeps the limiter: the next
        # request waits for the same thread, and never starts a second one.
        self.limiter = trio.CapacityLimiter(1)

    @property
    def is_free(self) -> bool:
        """Whether neither a request nor a thread uses the lock."""
        return not self.mutex.locked() and not self.limiter.borrowed_tokens

    def note_step(self, step: str) -> None:
        """Note the *step* that the request begins, for Status; the step may take long."""
        self.step = step


class VolumeLocks:
    """The locks of all volumes, by name."""

    def __init__(self) -> None:
        self._locks: dict[str, VolumeLock] = {}

    def __len__(self) -> int:
        return len(self._locks)

    def in_flight(self, name: str) -> str:
        """Return the verb of the request that holds the lock of *name*, its age, and its step.

        The text is empty if no request holds it.
        """
        lock = self._locks.get(name)
        # A new holder sets its verb only in the next round of the event loop. Until then the verb
        # is empty, or that of the last holder.
        if lock is None or not lock.verb or not lock.mutex.locked():
            return ""
        seconds = trio.current_time() - lock.deadline + DEADLINES_S[lock.verb]
        return f"{lock.verb}, for {seconds:.0f} s{lock.step and ': '}{lock.step}"

    @contextmanager
    def source_limiter(self, name: str) -> Iterator[trio.CapacityLimiter]:
        """Give the limiter of *name* to a thread that only checks the source, without the lock."""
        lock = self._locks.setdefault(name, VolumeLock())
        try:
            yield lock.limiter
        finally:
            self._drop_if_free(name, lock)

    def _drop_if_free(self, name: str, lock: VolumeLock) -> None:
        if lock.is_free:
            self._locks.pop(name, None)

    @asynccontextmanager
    async def hold(self, name: str, verb: str) -> AsyncIterator[VolumeLock]:
        """Wait until no other request holds the lock of *name*, then hold it for *verb*.

        Raises:
            VolumeBusy: the deadline of *verb* has passed; names the verb that holds the lock.
        """
        deadline = trio.current_time() + DEADLINES_S[verb]
        lock = self._locks.setdefault(name, VolumeLock())
        try:
            await _acquire(lock, name, verb, deadline)
            lock.verb, lock.step, lock.deadline = verb, "", deadline
            try:
                yield lock
            finally:
                lock.mutex.release()
        finally:
            self._drop_if_free(name, lock)


async def _acquire(lock: VolumeLock, name: str, verb: str, deadline: float) -> None:
    """Acquire the mutex of *lock*; the caller releases it."""
    try:
        with trio.fail_at(deadline):
            await lock.mutex.acquire()
    except trio.TooSlowError as error:
        raise VolumeBusy(
            f"volume {quoted(name)}: {verb} has waited {DEADLINES_S[verb]:g} s for another request"
            f" on the volume ({lock.verb}), which has not finished; try again"
        ) from error
