"""A thread's slot in a pool, and the samples by which the main thread judges the pool."""

import resource
import threading
import time
from collections.abc import Iterable
from typing import Final

from passthrough.session.abi import Opcode
from passthrough.session.request import Request

# The main thread samples this often while there is work. Shorter intervals add a thread sooner, and
# cost more processor time.
SAMPLE_INTERVAL_S: Final = 0.005
# Act on this many consecutive unreliable samples, because on an overloaded machine all samples are
# unreliable.
UNRELIABLE_SAMPLES: Final = 4
# If the host is slow but not stuck, callers gain little from more threads than this. A thread that
# waits for a processor looks as slow, and another thread makes that worse. So add one only after
# this many samples.
SLOW_HOST_MAX_THREADS: Final = 8
SLOW_HOST_SAMPLES: Final = 10
# A thread that serves more requests than this in an interval (one per 250 us) has a fast host. If
# samples find it busy all the same, other programs have the processors.
_FAST_HOST_REQUESTS: Final = 20
# The main thread stops sampling after this many samples without a request.
IDLE_SAMPLES: Final = 20
# The host holds no thread up if the process computes for this share of the time.
_BUSY_SHARE: Final = 0.4
# The shortest and the longest wait for other threads' requests.
_SHORTEST_WAIT_S: Final = 0.001
_LONGEST_WAIT_S: Final = 0.02
_LOCKING: Final = frozenset({int(Opcode.SETLK), int(Opcode.SETLKW)})


class ThreadSlot:
    """The state of one thread that the main thread samples.

    The thread changes the fields without a lock: each change is atomic under the interpreter lock.
    """

    __slots__ = ("idle", "request", "sampled", "start_args", "taken", "wake_up")

    def __init__(self, request: Request) -> None:
        self.request = request
        """The request that the thread serves."""
        self.start_args = (self,)
        self.wake_up = threading.Lock()
        """Released to recall a parked thread, or to end it."""
        self.wake_up.acquire()
        self.idle = True
        """True if the thread waits for a request, or is about to."""
        self.taken = 0
        """The number of requests that the thread has taken."""
        self.sampled = 0
        """The value of `taken` at the last sample; only the main thread changes it."""

    def serves_lock_wait(self) -> bool:
        """Return whether the thread's present request, or the last one if it is idle, is SETLKW.

        Such a thread may wait until a caller releases a lock.
        """
        return self.request.opcode == Opcode.SETLKW

    def may_wait_for_others(self) -> bool:
        """Return whether the thread's request may last until another request has been answered.

        It may wait for a lock, or for pages that are being read (handlers/locking.py).
        """
        return not self.idle and self.request.opcode in _LOCKING

    def forgets(self) -> bool:
        """Return whether the thread may be forgetting tens of thousands of inodes.

        That takes longer than an interval, waits for nothing, and no second thread speeds it up.
        """
        return not self.idle and self.request.opcode == Opcode.BATCH_FORGET


class Sampler:
    """Tells after each interval whether this process or the host has used the time."""

    __slots__ = (
        *("_computed", "_elapsed", "_preemptions", "_sampled_at", "_unreliable_left"),
        *("busy", "unreliable"),
    )

    def __init__(self) -> None:
        self._sampled_at = self._computed = self._elapsed = 0.0
        self._preemptions = self._unreliable_left = 0
        self.busy = False
        """True if this process computed for more than 40 % of the interval (`_BUSY_SHARE`).

        Then the host did not delay it.
        """
        self.unreliable = False
        """True if the sample came late, or a thread was preempted (ru_nivcsw) within the last few
        intervals and may still wait for a processor."""

    def sample(self) -> None:
        """End an interval, and begin the next one."""
        now, usage = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        computed = usage.ru_utime + usage.ru_stime
        elapsed = now - self._sampled_at
        preempted = self._sampled_at > 0 and usage.ru_nivcsw > self._preemptions
        left = UNRELIABLE_SAMPLES if preempted else max(0, self._unreliable_left - 1)
        self._unreliable_left = left
        self.busy = computed - self._computed > elapsed * _BUSY_SHARE
        self.unreliable = elapsed > 2 * SAMPLE_INTERVAL_S or left > 0
        self._sampled_at, self._computed, self._elapsed = now, computed, elapsed
        self._preemptions = usage.ru_nivcsw

    def is_fast(self, requests: int, threads: int) -> bool:
        """Return whether *threads* served too many *requests* in the interval for a slow host."""
        return requests * SAMPLE_INTERVAL_S > _FAST_HOST_REQUESTS * threads * self._elapsed

    def reset(self) -> None:
        """Forget the last sample."""
        self._sampled_at = self._computed = self._elapsed = 0.0
        self._unreliable_left = 0


def count_new_requests(slots: Iterable[ThreadSlot]) -> int:
    """Return how many requests the threads of *slots* have taken since the last call."""
    total = 0
    for slot in slots:
        taken = slot.taken
        total += taken - slot.sampled
        slot.sampled = taken
    return total


def another_serves(slots: Iterable[ThreadSlot], request: Request) -> bool:
    """Return whether a thread other than that of *request* can serve an unlock.

    A thread calls this when its own request is visible in its slot. So if several threads call it
    at the same time, the last one sees the requests of all the others.
    """
    return any(slot.request is not request and not slot.may_wait_for_others() for slot in slots)


def wait_for_others(slots: Iterable[ThreadSlot], request: Request) -> None:
    """Wait until other threads of *slots* have served what they took before *request*, or 20 ms."""
    # A thread that has just taken a request may not have marked its slot yet.
    time.sleep(_SHORTEST_WAIT_S)
    others = [
        (slot, slot.request.unique)
        for slot in slots
        if slot.request is not request and not slot.serves_lock_wait()
    ]
    deadline = time.monotonic() + _LONGEST_WAIT_S
    while time.monotonic() < deadline:
        if all(slot.idle or slot.request.unique != unique for slot, unique in others):
            break
        time.sleep(_SHORTEST_WAIT_S)
