"""One thread's place among those that serve, and what the main thread can tell by looking at it."""

import resource
import time
from collections.abc import Iterable
from typing import Final

from passthrough.session.abi import Opcode
from passthrough.session.request import Request

# How often the main thread looks while there is work: a compromise between the time that callers
# wait for a thread and the processor time that looking takes.
LOOK_S: Final = 0.005
# So many looks in a row are believed though they come late, as on a machine with too much to do.
LATE_LOOKS: Final = 4
# Where the host is slow and not stuck, more callers at once than this gain little. Who waits for a
# processor looks as slow, and a second thread makes that worse; so it takes this many looks.
ENOUGH_FOR_SLOW: Final = 8
SLOW_LOOKS: Final = 10
# So many looks in a row without a request: the main thread stops looking until there is one.
QUIET_LOOKS: Final = 20
# The part of the time that goes into computing from which on nobody is held up by the host.
_BUSY: Final = 0.4
# How long to wait for other threads, at least and at most, where they may be about to give way.
_PASS_S: Final = 0.001
_MOST_PASS_S: Final = 0.02


class Member:
    """The place of one thread, as the main thread sees it.

    The thread changes the fields without a lock; each change is one step for the interpreter.
    """

    __slots__ = ("alone", "moved", "request", "waits")

    def __init__(self, request: Request) -> None:
        self.request = request
        """What it works at."""
        self.alone = (self,)
        self.waits = True
        """Whether it waits for a request."""
        self.moved = False
        """Whether it has taken a request since the main thread looked."""

    def waits_for_lock(self) -> bool:
        """Whether it waits for somebody to give a lock up, perhaps."""
        return self.request.opcode == Opcode.SETLKW

    def forgets(self) -> bool:
        """Whether it gives tens of thousands of inodes back, perhaps.

        That takes longer than a look, waits for nobody, and no second thread hurries it.
        """
        return not self.waits and self.request.opcode == Opcode.BATCH_FORGET


class Interval:
    """The time between two looks: whether the host had it, or this process."""

    __slots__ = ("_computed", "_looked", "busy", "late")

    def __init__(self) -> None:
        self._looked = self._computed = 0.0
        self.busy = False
        """Whether it was this process that was busy meanwhile, rather than the host."""
        self.late = False
        """Whether it was long: others have the processors, and the look says little by itself."""

    def end(self) -> None:
        """Look at the one that ends, and begin another."""
        now, computed = time.monotonic(), _computed()
        elapsed = now - self._looked
        self.busy = computed - self._computed > elapsed * _BUSY
        self.late = elapsed > 2 * LOOK_S
        self._looked, self._computed = now, computed

    def forget(self) -> None:
        """There was no last look."""
        self._looked = self._computed = 0.0


def moved(members: Iterable[Member]) -> bool:
    """Whether one of *members* has taken a request since this was last asked."""
    movers = [member for member in members if member.moved]
    for member in movers:
        member.moved = False
    return bool(movers)


def let_finish(members: Iterable[Member], request: Request) -> None:
    """Wait until what others of *members* took before *request* is done, or longer than usual."""
    # Who has taken a request may not have come to say so.
    time.sleep(_PASS_S)
    others = [
        (member, member.request.unique)
        for member in members
        if member.request is not request and not member.waits_for_lock()
    ]
    deadline = time.monotonic() + _MOST_PASS_S
    while time.monotonic() < deadline:
        if all(one.waits or one.request.unique != unique for one, unique in others):
            break
        time.sleep(_PASS_S)


def _computed() -> float:
    """The processor time that this process has spent, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
