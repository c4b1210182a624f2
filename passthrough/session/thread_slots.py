"""One thread's place among those that serve, and what the main thread can tell by looking at it."""

import resource
import threading
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
# So many requests of a thread between two looks are too many for a host that is slow: one in 250
# microseconds. It looks held up nevertheless where others have the processors.
_FAST: Final = 20
# So many looks in a row without a request: the main thread stops looking until there is one.
QUIET_LOOKS: Final = 20
# The part of the time that goes into computing from which on nobody is held up by the host.
_BUSY: Final = 0.4
# How long to wait for other threads, at least and at most, where they may be about to give way.
_PASS_S: Final = 0.001
_MOST_PASS_S: Final = 0.02
_LOCKING: Final = frozenset({int(Opcode.SETLK), int(Opcode.SETLKW)})


class Member:
    """The place of one thread, as the main thread sees it.

    The thread changes the fields without a lock; each change is one step for the interpreter.
    """

    __slots__ = ("alone", "called", "count", "request", "seen", "waits")

    def __init__(self, request: Request) -> None:
        self.request = request
        """What it works at."""
        self.alone = (self,)
        self.called = threading.Lock()
        """Released by who calls a thread back from the reserve, or has it end there."""
        self.called.acquire()
        self.waits = True
        """Whether it waits for a request, or is just about to."""
        self.count = 0
        """How many requests it has taken."""
        self.seen = 0
        """How many of them when the main thread looked, which alone changes this."""

    def waits_for_lock(self) -> bool:
        """Whether it waits for somebody to give a lock up, perhaps."""
        return self.request.opcode == Opcode.SETLKW

    def may_wait_for_others(self) -> bool:
        """Return whether its request may last until another request has been answered.

        That is a wait for a lock, or for pages that are read meanwhile (handlers/locking.py).
        """
        return not self.waits and self.request.opcode in _LOCKING

    def forgets(self) -> bool:
        """Whether it gives tens of thousands of inodes back, perhaps.

        That takes longer than a look, waits for nobody, and no second thread hurries it.
        """
        return not self.waits and self.request.opcode == Opcode.BATCH_FORGET


class Interval:
    """The time between two looks: whether the host had it, or this process."""

    __slots__ = ("_computed", "_elapsed", "_interrupted", "_looked", "_unsure", "busy", "late")

    def __init__(self) -> None:
        self._looked = self._computed = self._elapsed = 0.0
        self._interrupted = self._unsure = 0
        self.busy = False
        """Whether it was this process that was busy meanwhile, rather than the host."""
        self.late = False
        """Whether others have the processors, and the look says little by itself: it was long, or a
        moment ago one of our threads had to give way to somebody, and may be waiting still."""

    def end(self) -> None:
        """Look at the one that ends, and begin another."""
        now, usage = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        computed = usage.ru_utime + usage.ru_stime
        elapsed = now - self._looked
        interrupted = self._looked > 0 and usage.ru_nivcsw > self._interrupted
        self._unsure = LATE_LOOKS if interrupted else max(0, self._unsure - 1)
        self.busy = computed - self._computed > elapsed * _BUSY
        self.late = elapsed > 2 * LOOK_S or self._unsure > 0
        self._looked, self._computed, self._elapsed = now, computed, elapsed
        self._interrupted = usage.ru_nivcsw

    def fast(self, requests: int, threads: int) -> bool:
        """Whether *requests* of so many *threads* in this time are too many for a slow host."""
        return requests * LOOK_S > _FAST * threads * self._elapsed

    def forget(self) -> None:
        """There was no last look."""
        self._looked = self._computed = self._elapsed = 0.0
        self._unsure = 0


def taken(members: Iterable[Member]) -> int:
    """How many requests *members* have taken since this was last asked."""
    total = 0
    for member in members:
        count = member.count
        total += count - member.seen
        member.seen = count
    return total


def another_serves(members: Iterable[Member], request: Request) -> bool:
    """Return whether another of *members* than the one at *request* is there for unlocks.

    Each thread asks once its own request can be seen. So of threads that ask at the same time, the
    last one to ask sees all the others.
    """
    return any(
        member.request is not request and not member.may_wait_for_others() for member in members
    )


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
