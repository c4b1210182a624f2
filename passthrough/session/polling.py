"""Polls /dev/fuse for the next request before a thread sleeps, if trials show that this pays.

On an idle machine most of a round trip is the time to wake a processor, and a thread that polls
need not be woken. On a busy machine polling takes time from the very caller that sends the next
request. No counter tells the two cases apart beforehand. So under load the session tries both ways,
for one trial each, and keeps the better one for a while. Polling is better if it increases the
requests a second by a factor of at least 1.15, and by no smaller factor than the processor time of
each request.

Between polls the thread calls sched_yield(2), because the caller may need this CPU. If another
program computes, sched_yield(2) takes milliseconds, and every caller waits as long. Then polling
stops at once.

The session polls by poll(2). To make read(2) return at once takes O_NONBLOCK, which would apply to
every process that has the descriptor.
"""

import os
import select
import threading
import time
from typing import Final, NamedTuple

# A thread polls for this long after its last request.
_POLL_LIMIT_NS: Final = 75_000
# If polling exceeds its limit by this much, another program has had the processor.
_PREEMPTED_NS: Final = 500_000
# The samples (thread_slots.SAMPLE_INTERVAL_S) in one trial, and the requests in it that are a load.
_SAMPLES_PER_TRIAL: Final = 4
_LOAD_REQUESTS: Final = 40
# An outcome is valid for this many times the length of a trial. Each time that polling does not
# pay, the validity doubles, up to the maximum.
_VALIDITY: Final = 25
_MAX_VALIDITY: Final = 400
# Polling must pay in this many trials in a row.
_WINS_NEEDED: Final = 2
# A smaller speedup may be chance.
_MIN_SPEEDUP: Final = 1.15


class Trial(NamedTuple):
    """The work of the process in one trial."""

    requests: int
    seconds: float
    cpu_s: float
    """Processor time of the process, in seconds."""

    def pays(self, baseline: "Trial") -> bool:
        """Return whether this trial gains more speed over *baseline* than it costs CPU time."""
        speedup = self.requests / self.seconds / (baseline.requests / baseline.seconds)
        cost = self.cpu_s / self.requests / (baseline.cpu_s / baseline.requests)
        return speedup >= _MIN_SPEEDUP and speedup >= cost


class Polling:
    """The polling of one channel; safe for threads."""

    def __init__(self, fd: int) -> None:
        """Borrow *fd*; polling is off at first."""
        self.on = False
        """True if a thread should call `wait` before it reads; any thread may switch it off."""
        self.received = 0
        """The number of requests; the threads count it up."""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._polls = threading.Lock()
        self._samples = 0
        self._trials_left = 0
        self._validity = _VALIDITY
        self._wins = 0
        self._baseline: Trial | None = None
        self._start: tuple[int, float, float] | None = None

    def wait(self) -> None:
        """Poll until there is a request, for 75 us at most.

        Only one thread polls at a time; the others sleep. If the thread loses the processor or the
        interpreter lock meanwhile, polling is switched off for a while.
        """
        if not self._polls.acquire(blocking=False):
            return
        try:
            end = time.perf_counter_ns() + _POLL_LIMIT_NS
            while not self._poll.poll(0) and time.perf_counter_ns() < end:
                os.sched_yield()
            if time.perf_counter_ns() > end + _PREEMPTED_NS:
                self.on = False
        finally:
            self._polls.release()

    def sample(self) -> None:
        """Decide anew at the end of a trial; the main thread calls it in every sample."""
        self._samples += 1
        if self._samples < _SAMPLES_PER_TRIAL:
            return
        self._samples = 0
        start, now = self._start, (self.received, time.monotonic(), time.process_time())
        self._start = now
        if start is not None:
            self.judge(Trial(now[0] - start[0], now[1] - start[1], now[2] - start[2]))

    def reset(self) -> None:
        """Switch polling off, and forget all trials."""
        self.on, self._baseline, self._wins = False, None, 0
        self._start = None
        self._samples = self._trials_left = self.received = 0

    def judge(self, trial: Trial) -> None:
        """Switch polling on or off by the *trial* that has just ended."""
        if self._baseline is not None and not self.on:  # `wait` has ended the trial of polling
            self._baseline = None
            self._keep_for(self._validity)
        elif trial.requests < _LOAD_REQUESTS:
            self._trials_left = 0 if self.on else self._trials_left
            self.on, self._baseline, self._wins = False, None, 0
        elif self._trials_left:
            self._trials_left -= 1
            if not self._trials_left:
                self.on = False  # the next trial is the baseline
        elif self._baseline is None:
            self._baseline, self.on = trial, True
        elif trial.pays(self._baseline):
            self._baseline = None
            self._wins += 1
            self.on = self._wins == _WINS_NEEDED
            if self.on:
                self._keep_for(_VALIDITY)
        else:
            self.on, self._baseline = False, None
            self._keep_for(min(2 * self._validity, _MAX_VALIDITY))

    def _keep_for(self, trials: int) -> None:
        """Keep the present state for so many *trials*."""
        self._trials_left = self._validity = trials
        self._wins = 0
