"""One request at a time for each volume, and no request for longer than its verb may take.

Each volume has a lock of its own, so that one whose source hangs holds up no other. A turn exists
while somebody has it, or waits for it, or a thread hangs that was started in it.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from plugin.errors import VolumeBusy, quoted
from plugin.mounting.keeper import MOUNT_DEADLINE_S

# Looking at a source takes milliseconds, or for ever on a dead network file system. dockerd would
# give Create 120 s; here a person waits.
SOURCE_DEADLINE_S = 10.0
# Longer than all Mounts that came before may take, so that what they have counted can go again.
RELEASE_DEADLINE_S = 24.0

# From the request on, and so with the waiting for those that came before.
DEADLINES_S = {
    "Create": SOURCE_DEADLINE_S,
    "Mount": MOUNT_DEADLINE_S,
    "Unmount": RELEASE_DEADLINE_S,
    "Remove": RELEASE_DEADLINE_S,
}


class Turn:
    """What the requests for one volume share: they run one at a time, and so do their threads."""

    __slots__ = ("deadline", "limiter", "lock", "step", "verb")

    def __init__(self) -> None:
        self.lock = trio.Lock()
        # Of the request that holds the lock, or was the last to do so.
        self.verb = ""
        self.step = ""
        self.deadline = 0.0
        # For opening the source. A thread that hangs there holds the limiter, so that the next
        # request waits for that same thread and there is never a second one.
        self.limiter = trio.CapacityLimiter(1)

    @property
    def idle(self) -> bool:
        """Whether no request and no thread has to do with it any more."""
        return not self.lock.locked() and not self.limiter.borrowed_tokens

    def comes_to(self, step: str) -> None:
        """Say what the request that has the turn does now; it may take its time."""
        self.step = step


class Turns:
    """The turns of all volumes, by name."""

    def __init__(self) -> None:
        self._turns: dict[str, Turn] = {}

    def __len__(self) -> int:
        return len(self._turns)

    def under_way(self, name: str) -> str:
        """Which request for *name* has its turn, since when and what it does; empty if none has."""
        turn = self._turns.get(name)
        # Who has taken the lock comes to say its verb only in the next round of the event loop;
        # until then there is none, or that of the request before.
        if turn is None or not turn.verb or not turn.lock.locked():
            return ""
        seconds = trio.current_time() - turn.deadline + DEADLINES_S[turn.verb]
        return f"{turn.verb}, for {seconds:.0f} s{turn.step and ': '}{turn.step}"

    @contextmanager
    def beside(self, name: str) -> Iterator[Turn]:
        """The turn of *name* for a thread alone, which changes nothing and waits for nobody."""
        turn = self._turns.setdefault(name, Turn())
        try:
            yield turn
        finally:
            self._leave(name, turn)

    def _leave(self, name: str, turn: Turn) -> None:
        if turn.idle:
            self._turns.pop(name, None)

    @asynccontextmanager
    async def take(self, name: str, verb: str) -> AsyncIterator[Turn]:
        """Wait until no other request changes *name*, and no longer than *verb* may take.

        Raises:
            VolumeBusy: says what it has waited for.
        """
        deadline = trio.current_time() + DEADLINES_S[verb]
        turn = self._turns.setdefault(name, Turn())
        try:
            await _wait_for(turn, name, verb, deadline)
            turn.verb, turn.step, turn.deadline = verb, "", deadline
            try:
                yield turn
            finally:
                turn.lock.release()
        finally:
            self._leave(name, turn)


async def _wait_for(turn: Turn, name: str, verb: str, deadline: float) -> None:
    """Take the lock of *turn*, which the caller releases."""
    try:
        with trio.fail_at(deadline):
            await turn.lock.acquire()
    except trio.TooSlowError as error:
        raise VolumeBusy(
            f"volume {quoted(name)}: {verb} has waited {DEADLINES_S[verb]:g} s for another request"
            f" on the volume, {turn.verb}, which has not come to an end"
        ) from error
