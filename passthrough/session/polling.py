"""Asking for the next request for a moment before sleeping, where that is found to pay.

On a machine with nothing else to do, most of a round trip is waking processors, and a thread that
has not gone to sleep need not be woken. On a busy one it only takes time from the very caller whose
next request it wants. Nothing tells the two apart beforehand. So both ways are tried under load,
for a moment each, and the better one is kept for a while: the one that serves more requests a
second, by a greater factor than that of the processor time that each of them takes.

Who asks gives way in between, for the caller may wait for this very processor. If somebody else
does, it is gone for milliseconds, and so for everybody who has requests. Then asking ends at once.

Only poll(2) can ask: read(2) goes by O_NONBLOCK, which belongs to everybody who has the descriptor.
"""

import os
import select
import threading
import time
from typing import Final, NamedTuple

# How long a thread asks after its last request.
_LIMIT_NS: Final = 75_000
# Who gave way for longer did so to somebody else's computing: a caller under load asks before.
_GIVEN_AWAY_NS: Final = 500_000
# The main thread's looks (crew.LOOK_S) that make one trial, and how many requests are a load.
_LOOKS: Final = 4
_LOAD: Final = 40
# For how many times the length of a trial its outcome is believed; and up to how many if trying
# did not pay, each time for twice as long.
_BELIEVED: Final = 25
_MOST_BELIEVED: Final = 400
# How often in a row it has to pay.
_AGREEING: Final = 2
# What is less than so many times faster may be chance.
_GAIN: Final = 1.15


class Trial(NamedTuple):
    """What happened in some time."""

    requests: int
    seconds: float
    computed: float
    """Seconds of the process's processor time."""

    def pays(self, before: "Trial") -> bool:
        """Whether this one gives more than it takes, measured by the one *before*."""
        faster = self.requests / self.seconds / (before.requests / before.seconds)
        dearer = self.computed / self.requests / (before.computed / before.requests)
        return faster >= _GAIN and faster >= dearer


class Polling:
    """What one channel's threads do before they sleep; safe for threads."""

    def __init__(self, fd: int) -> None:
        """Ask for requests on *fd*, which is borrowed; not yet."""
        self.on = False
        """Whether `wait` is worth calling; any thread may find that it is not."""
        self.received = 0
        """How many requests there were; for threads to count up."""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._turn = threading.Lock()
        self._looks = 0
        self._left = 0
        self._believed = _BELIEVED
        self._agreeing = 0
        self._without: Trial | None = None
        self._start: tuple[int, float, float] | None = None

    def wait(self) -> None:
        """Return when there is a request, or none has come for a moment.

        One thread at a time: the others can as well sleep. If the processor was gone meanwhile,
        or the interpreter, there will be no asking for a while.
        """
        if not self._turn.acquire(blocking=False):
            return
        try:
            end = time.perf_counter_ns() + _LIMIT_NS
            while not self._poll.poll(0) and time.perf_counter_ns() < end:
                os.sched_yield()
            if time.perf_counter_ns() > end + _GIVEN_AWAY_NS:
                self.on = False
        finally:
            self._turn.release()

    def look(self) -> None:
        """Decide anew, every few times; to be called by the main thread in the crew's intervals."""
        self._looks += 1
        if self._looks < _LOOKS:
            return
        self._looks = 0
        start, now = self._start, (self.received, time.monotonic(), time.process_time())
        self._start = now
        if start is not None:
            self.judge(Trial(now[0] - start[0], now[1] - start[1], now[2] - start[2]))

    def rest(self) -> None:
        """Begin anew when there are requests again; until then nothing is asked, or remembered."""
        self.on, self._without, self._agreeing = False, None, 0
        self._start = None
        self._looks = self._left = self.received = 0

    def judge(self, trial: Trial) -> None:
        """Take what has happened since the last call into account."""
        if self._without is not None and not self.on:  # it was being tried, and `wait` ended it
            self._without = None
            self._settle(self._believed)
        elif trial.requests < _LOAD:
            self._left = 0 if self.on else self._left
            self.on, self._without, self._agreeing = False, None, 0
        elif self._left:
            self._left -= 1
            if not self._left:
                self.on = False  # for the next trial, without
        elif self._without is None:
            self._without, self.on = trial, True
        elif trial.pays(self._without):
            self._without = None
            self._agreeing += 1
            self.on = self._agreeing == _AGREEING
            if self.on:
                self._settle(_BELIEVED)
        else:
            self.on, self._without = False, None
            self._settle(min(2 * self._believed, _MOST_BELIEVED))

    def _settle(self, believed: int) -> None:
        """Leave it as it is for so many times the length of a trial."""
        self._left = self._believed = believed
        self._agreeing = 0
