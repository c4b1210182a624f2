"""The threads that serve io_uring entries: a few for each processor, pinned to it, one entry each.

The kernel gives a request to the entry that became free last. So one thread of a processor serves
all requests as long as it keeps up. It runs where the request was made, and no thread on another
processor is woken. The second thread is there in case the host blocks the first.

If no thread of a processor is idle, the main thread samples the pools, as it does the pool of
/dev/fuse. If the host blocks all threads of a processor, and the process does not compute, the main
thread doubles their number. If the host only slows them down, it adds one thread, up to eight. The
process may compute for other processors meanwhile. So the main thread doubles the number also if no
thread of a processor has taken a request for ten samples (50 ms).

No thread leaves before the connection ends, because the kernel does not give an entry back.
"""

import _thread
import contextlib
import errno
import itertools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final

from passthrough.linux.errors import os_error
from passthrough.session.request import Request
from passthrough.session.rings import THE_END, RingChannel
from passthrough.session.session import Session
from passthrough.session.thread_slots import (
    IDLE_SAMPLES,
    SLOW_HOST_MAX_THREADS,
    SLOW_HOST_SAMPLES,
    UNRELIABLE_SAMPLES,
    Sampler,
    ThreadSlot,
    another_serves,
    count_new_requests,
    wait_for_others,
)

log = logging.getLogger(__name__)

# If more callers of one processor than this all hang, no thread is added for it.
_MAX_THREADS: Final = 64
# The threads of each processor at the start: one serves, the other waits.
_FIRST_THREADS: Final = 2
# Search this many inodes for a regular file that the kernel knows.
_INODES_TRIED: Final = 256
# Threads have this long to start, and the kernel to take their entries.
_START_LIMIT_S: Final = 10.0


class _RingPool:
    """The threads of one processor."""

    __slots__ = ("had_no_idle", "held_up_samples", "processor", "size", "slots", "stuck_samples")

    def __init__(self, processor: int) -> None:
        self.processor = processor
        self.size = 0
        """The number of threads, including those that have not started to serve."""
        self.slots: list[ThreadSlot] = []
        """The threads that serve."""
        self.had_no_idle = False
        """True if no thread was idle at the last sample."""
        self.held_up_samples = 0
        """The consecutive samples in which the host held all threads up."""
        self.stuck_samples = 0
        """The consecutive samples in which no thread took a request."""

    def none_idle(self) -> bool:
        """Return whether no thread waits for a request."""
        return not any(slot.idle for slot in self.slots)


class RingPools:
    """All io_uring threads of one session: a pool for every possible processor."""

    def __init__(
        self,
        session: Session,
        open_channel: Callable[[int], RingChannel],
        processors: Sequence[int],
        wake: Callable[[], object],
    ) -> None:
        """Make pools without threads.

        *open_channel* makes a channel to a processor's queue, for the calling thread. *wake* has
        the main thread sample again.
        """
        self._session = session
        self._open_channel = open_channel
        self._wake = wake
        self._lock = threading.Lock()
        self._pools = [_RingPool(processor) for processor in processors]
        self._provoked_requests = itertools.count()
        self._stopped = False
        self._shortage_logged = False
        self._idle_samples = 0
        self._sampler = Sampler()
        self.idle = True
        """True if the main thread need not sample until it is woken."""
        self.error: Exception | None = None
        """The error that broke the connection."""

    @property
    def in_use(self) -> bool:
        """True if requests come over io_uring, and only forgets and interrupts by /dev/fuse."""
        return bool(self._pools)

    def start(self) -> None:
        """Start the first threads of every processor, if requests come over io_uring.

        Raises:
            OSError: the kernel does not take their entries.
        """
        if not self.in_use:
            return
        self._session.let_others_finish = self.let_others_finish
        self._session.may_wait = self.may_wait
        started: SimpleQueue[OSError | None] = SimpleQueue()
        for pool in (pool for pool in self._pools for _ in range(_FIRST_THREADS)):
            self._grow(pool, started.put)
            try:
                error = started.get(timeout=_START_LIMIT_S)
            except Empty:
                raise os_error(errno.ETIMEDOUT) from None
            if error is not None and error.errno in THE_END:
                return  # it has just been unmounted, which /dev/fuse reports
            if error is not None:
                raise error

    def stop(self) -> None:
        """Serve no further request."""
        with self._lock:
            self._stopped = True

    def in_flight(self) -> int:
        """Return the number of requests in service."""
        return sum(not slot.idle for slot in self._slots())

    def size(self) -> int:
        """Return the number of threads, idle ones included."""
        return sum(pool.size for pool in self._pools)

    def let_others_finish(self, request: Request) -> bool:
        """Wait until other threads have served what they took before *request*, or 20 ms.

        Returns:
            True: there are always other threads.
        """
        wait_for_others(self._slots(), request)
        return True

    def may_wait(self, request: Request) -> bool:
        """Return whether another thread serves the processor of *request*; try to add one.

        A new thread counts once the kernel has its entry.
        """
        pool = next(pool for pool in self._pools for slot in pool.slots if slot.request is request)
        if not another_serves(tuple(pool.slots), request):
            started: SimpleQueue[OSError | None] = SimpleQueue()
            if self._grow(pool, started.put):
                with contextlib.suppress(Empty):
                    self._log_shortage(started.get(timeout=_START_LIMIT_S))
        return another_serves(tuple(pool.slots), request)

    def _slots(self) -> list[ThreadSlot]:
        return [slot for pool in self._pools for slot in pool.slots]

    def sample(self) -> None:
        """Grow pools if needed; to be called every `SAMPLE_INTERVAL_S` unless `idle`."""
        self._sampler.sample()
        enough = UNRELIABLE_SAMPLES if self._sampler.unreliable else 1
        self._idle_samples += 1
        for pool in self._pools:
            requests, none_idle = count_new_requests(pool.slots), pool.none_idle()
            if none_idle:
                self._idle_samples = 0
            starting = len(pool.slots) < pool.size
            computes = self._sampler.busy or self._sampler.is_fast(requests, len(pool.slots))
            held_up = none_idle and pool.had_no_idle and not starting and not computes
            stuck = none_idle and not requests and not starting
            pool.held_up_samples = pool.held_up_samples + 1 if held_up else 0
            pool.stuck_samples = pool.stuck_samples + 1 if stuck else 0
            if requests:
                if pool.held_up_samples >= SLOW_HOST_SAMPLES and pool.size < SLOW_HOST_MAX_THREADS:
                    pool.held_up_samples = 0
                    self._grow(pool, self._log_shortage)
            elif pool.held_up_samples >= enough or pool.stuck_samples >= SLOW_HOST_SAMPLES:
                pool.stuck_samples = 0
                for _ in range(pool.size):
                    if not self._grow(pool, self._log_shortage):
                        break
            pool.had_no_idle = none_idle
        if self._idle_samples >= IDLE_SAMPLES:
            self._idle_samples, self.idle = 0, True
            self._sampler.reset()
            # A thread that took a request before this saw no reason to wake the main thread.
            self.idle = not any(pool.none_idle() for pool in self._pools)

    def _resume_sampling(self) -> None:
        with self._lock:
            self.idle = False
            if not self._stopped:
                self._wake()

    def _grow(self, pool: _RingPool, started: Callable[[OSError | None], object]) -> bool:
        """Start one more thread, unless the pool is full."""
        with self._lock:
            if pool.size >= _MAX_THREADS + self._session.waiting() or self._stopped:
                return False
            pool.size += 1
            requests_wait = pool.size > _FIRST_THREADS
        try:
            _thread.start_new_thread(self._work, (pool, requests_wait, started))
        except RuntimeError as error:  # Python's error for EAGAIN here
            with self._lock:
                pool.size -= 1
            self._log_shortage(failure := OSError(errno.EAGAIN, str(error)))
            started(failure)
            return False
        return True

    def _log_shortage(self, error: OSError | None) -> None:
        if error is not None and not self._shortage_logged:
            self._shortage_logged = True
            log.warning("cannot start more than %d threads: %s", self.size(), error)

    def _work(
        self, pool: _RingPool, requests_wait: bool, started: Callable[[OSError | None], object]
    ) -> None:
        try:
            _pin_to(pool.processor)
            channel = self._open_channel(pool.processor)
            if requests_wait:
                number = next(self._provoked_requests)
                # The kernel gives waiting requests to a new entry only after an answer.
                channel.hurry(number, self._session.fs.inodes.latest(_INODES_TRIED))
        except OSError as error:
            with self._lock:
                pool.size -= 1
            started(error)
            return
        try:
            self._serve(pool, channel, started)
        except Exception as error:  # the request of a dead thread would never be answered
            log.exception("the connection to the kernel is broken")
            self.error = error
            with self._lock:
                if not self._stopped:
                    self._wake()

    def _serve(
        self, pool: _RingPool, channel: RingChannel, started: Callable[[OSError | None], object]
    ) -> None:
        receive, answer, request = channel.receive, self._session.answer, channel.open_request()
        slot = ThreadSlot(request)
        pool.slots.append(slot)
        started(None)
        try:
            while receive(request):
                slot.idle = False
                slot.taken += 1
                if self.idle and pool.none_idle():
                    self._resume_sampling()
                if self._stopped:
                    return
                answer(request, channel)
                slot.idle = True
        finally:
            slot.idle = True


def _pin_to(processor: int) -> None:
    """Pin this thread to *processor*, if it is online and this process may use it."""
    try:
        os.sched_setaffinity(0, {processor})
    except OSError as error:
        log.debug("no thread is pinned to processor %d: %s", processor, error)
