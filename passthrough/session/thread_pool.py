"""The pool of threads that read /dev/fuse; each serves one request after the other.

While the host answers at once, one thread is fastest: it finds the next request waiting, sleeps
less, and shares the interpreter with no other. The pool has more threads only because the host may
block one.

The main thread samples the pool every 5 ms while there is work. If no thread is idle because the
host blocks all of them, and not because they compute, it adds threads. A handler that is about to
wait for a disk calls `about_to_block` first, which adds a thread at once. When the call has
returned, the two threads do not alternate: the first that finds the other one idle leaves.

So a system call that hangs delays its own caller, and all other callers until the second sample (10
ms at most). If other programs have the processors, a thread that waits for a processor looks much
like one that waits for the host. The delay then lasts until the fifth sample: 25 ms, or longer if
the samples come late.

Only a request wakes a thread inside read(2). So a surplus thread leaves after its next request. If
no request comes, `Session.wake_readers` has the kernel send some that need no answer. When the
session stops, its threads stay inside read(2), and do not serve the requests that they may still
read. The kernel fails such a request when the connection ends.

A few threads that leave are parked until the pool is idle. Waking a parked thread costs a fraction
of starting one.

A thread's few objects are made once, and pass from a thread that leaves to one that starts. New
objects would lie in memory among the inodes of a walk through a million files. Each would keep
1 MiB of that memory from being returned to the kernel.
"""

import _thread
import errno
import logging
import threading
from collections.abc import Callable
from typing import Final

from passthrough.linux.errors import os_error
from passthrough.session.channel import Channel
from passthrough.session.request import Request
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

# If more callers than this all hang, no thread is added. Waits for locks do not count.
_MAX_THREADS: Final = 256
# Shrink the pool after this many consecutive samples with an idle thread.
_SHRINK_SAMPLES: Final = 20
# A thread may forget inodes for this many consecutive samples (1 s) before it counts as held up.
_MAX_FORGET_SAMPLES: Final = 200
# The slots that are made at the start, and kept.
_KEPT_SLOTS: Final = 4
# Callers that sync at the same time come back at the same time: park this many threads for them.
_MAX_PARKED: Final = 8


class ThreadPool:
    """The threads that read one session's requests from /dev/fuse.

    Threads change their own slots without a lock: each change is atomic under the interpreter lock.
    A parked thread has no slot in the pool.
    """

    def __init__(
        self,
        session: Session,
        channel: Channel,
        wake: Callable[[], object],
        *,
        beside_rings: bool = False,
    ) -> None:
        """Make a pool without threads; *wake* has the main thread sample again.

        With *beside_rings* /dev/fuse brings only forgets and interrupts. The handlers that are
        about to block run in other threads, and the requests that would wake a surplus thread come
        over io_uring. So the pool grows only if a thread hangs, and shrinks with the next forgets.
        """
        self._session = session
        self._channel = channel
        self._wake = wake
        self._receive, self._answer, self._begin = channel.receive, session.answer, self._work
        self._beside_rings = beside_rings
        self._lock = threading.Lock()
        self._slots: set[ThreadSlot] = set()
        self._free_slots: list[ThreadSlot] = []
        self._parked: list[ThreadSlot] = []
        self._target_size = 1
        self._stopped = False
        self._had_no_idle = False
        self._shortage_logged = False
        self._held_up_samples = self._forget_samples = 0
        self._samples_with_idle = self._idle_samples = 0
        self._sampler = Sampler()
        self.idle = False
        """True if the main thread need not sample until it is woken."""
        self.ended = False
        """True if there will be no more requests."""
        self.error: Exception | None = None
        """The error that broke the connection."""

    def start(self) -> None:
        """Start the first thread.

        Raises:
            OSError: there is no thread to be had (EAGAIN), or no memory for the slots.
        """
        if not self._beside_rings:
            self._session.about_to_block = self.about_to_block
            self._session.may_wait = self.may_wait
        self._session.let_others_finish = self.let_others_finish
        self._free_slots = [ThreadSlot(self._channel.open_request()) for _ in range(_KEPT_SLOTS)]
        self._grow(1)
        if not self._slots and not self.ended:
            raise os_error(errno.EAGAIN)

    def stop(self) -> None:
        """Serve no further request; *wake* is not called any more."""
        with self._lock:
            self._stopped = True
            self._target_size = 0
        self._end_parked()

    def in_flight(self) -> int:
        """Return the number of requests in service."""
        return sum(not slot.idle for slot in tuple(self._slots))

    def size(self) -> int:
        """Return the number of threads, idle ones included."""
        return len(self._slots)

    def about_to_block(self) -> None:
        """Add a thread if none is idle, because the calling thread is about to wait for the host.

        The thread must not have a caller's credentials: a new thread inherits them.
        """
        if self.in_flight() == len(self._slots):
            self._add_thread(stays=False)

    def may_wait(self, request: Request) -> bool:
        """Return whether another thread serves while that of *request* waits; try to add one.

        If no thread can be added, the last one must not wait for a lock: it has to serve the
        unlock.
        """
        with self._lock:
            if another_serves(self._slots, request):
                return True
        self._add_thread(stays=False)
        with self._lock:
            return another_serves(self._slots, request)

    def let_others_finish(self, request: Request) -> bool:
        """Wait until other threads have served what they took before *request*, or 20 ms.

        Returns:
            False if there are no other threads, so that all earlier requests are served.
        """
        if len(self._slots) == 1:
            return False
        self.about_to_block()
        wait_for_others(tuple(self._slots), request)
        return True

    def sample(self) -> None:
        """Grow or shrink the pool if needed; to be called every `SAMPLE_INTERVAL_S`."""
        self._channel.sample()
        slots = tuple(self._slots)
        requests = count_new_requests(slots)
        none_idle = not any(slot.idle for slot in slots)
        self._sampler.sample()
        forgets = any(slot.forgets() for slot in slots)
        self._forget_samples = self._forget_samples + 1 if forgets else 0
        computes = (
            self._sampler.busy
            or self._sampler.is_fast(requests, len(slots))
            or 0 < self._forget_samples < _MAX_FORGET_SAMPLES
        )
        held_up = none_idle and self._had_no_idle and not computes
        self._held_up_samples = self._held_up_samples + 1 if held_up else 0
        if requests:
            if self._held_up_samples >= SLOW_HOST_SAMPLES and len(slots) < SLOW_HOST_MAX_THREADS:
                self._held_up_samples = 0
                self._grow(1)
        elif self._held_up_samples >= (UNRELIABLE_SAMPLES if self._sampler.unreliable else 1):
            self._grow(len(slots))
        self._idle_samples = 0 if none_idle or requests else self._idle_samples + 1
        self._samples_with_idle = 0 if none_idle else self._samples_with_idle + 1
        self._had_no_idle = none_idle
        if self._samples_with_idle >= _SHRINK_SAMPLES:
            self._samples_with_idle = 0
            size = max(1 + self.in_flight(), len(slots) // 2)
            self._target_size = min(self._target_size, size)
        if self._idle_samples >= IDLE_SAMPLES:
            self._become_idle()

    def _become_idle(self) -> None:
        """Shrink the pool, then stop sampling; if no reader can be woken, just stop sampling."""
        self._idle_samples, self._target_size = 0, 1 + self.in_flight()
        surplus = len(self._slots) - self._target_size
        if surplus > 0 and self._session.wake_readers(surplus):
            return
        self._end_parked()
        self._sampler.reset()
        self._channel.idle()
        self._session.idle()
        self.idle = True
        if self.in_flight():  # a thread that took a request before this saw no reason to wake
            self.idle = False

    def _end_parked(self) -> None:
        with self._lock:
            parked, self._parked = self._parked, []
        for slot in parked:
            slot.wake_up.release()

    def _grow(self, count: int) -> None:
        """Add *count* threads that stay until the pool shrinks."""
        for _ in range(count):
            if not self._add_thread(stays=True):
                return

    def _add_thread(self, *, stays: bool) -> bool:
        """Recall a parked thread or start a new one; return whether there is one.

        Unless the thread *stays*, the next thread that finds another one idle leaves.
        """
        with self._lock:
            if not self._has_room():
                return False
            if self._parked:
                slot = self._parked.pop()
                self._enter(slot, stays=stays)
                slot.wake_up.release()
                return True
            free = self._free_slots.pop() if self._free_slots else None
        try:
            return self._start(free or ThreadSlot(self._channel.open_request()), stays=stays)
        except (OSError, RuntimeError) as error:  # the machine has no memory, or no thread
            if not self._shortage_logged:
                self._shortage_logged = True
                log.warning("cannot start more than %d threads: %s", self.size(), error)
            return False

    def _start(self, slot: ThreadSlot, *, stays: bool) -> bool:
        """Start a thread in *slot*, unless the pool has become full meanwhile.

        Raises:
            OSError, RuntimeError: the thread cannot be started.
        """
        with self._lock:
            if not self._has_room():
                self._leave(slot)
                return False
            self._enter(slot, stays=stays)
        try:
            _thread.start_new_thread(self._begin, slot.start_args)
        except BaseException:
            with self._lock:
                self._leave(slot)
                self._target_size = min(self._target_size, max(1, len(self._slots)))
            raise
        return True

    # The caller holds the lock.

    def _has_room(self) -> bool:
        return not self._stopped and len(self._slots) < _MAX_THREADS + self._session.waiting()

    def _enter(self, slot: ThreadSlot, *, stays: bool) -> None:
        slot.idle = True
        self._slots.add(slot)
        if stays:
            self._target_size = len(self._slots)

    def _leave(self, slot: ThreadSlot) -> None:
        self._slots.discard(slot)
        slot.request.clear()
        if len(self._free_slots) < _KEPT_SLOTS:
            self._free_slots.append(slot)

    # In each thread.

    def _work(self, slot: ThreadSlot) -> None:
        try:
            self._serve(slot)
        except Exception as error:  # the request of a dead thread would never be answered
            log.exception("the connection to the kernel is broken")
            self.error, self.ended = error, True
        finally:
            slot.idle = True
            with self._lock:
                self._leave(slot)
                if self.ended and not self._stopped:
                    self._wake()

    def _serve(self, slot: ThreadSlot) -> None:
        receive, answer = self._receive, self._answer
        request, channel = slot.request, self._channel
        while receive(request):
            slot.idle = False
            slot.taken += 1
            if self.idle:
                self._resume_sampling()
            if self._stopped:
                return
            answer(request, channel)
            if len(self._slots) > self._target_size and self._park_or_end(slot):
                return
            slot.idle = True
        self.ended = True

    def _resume_sampling(self) -> None:
        with self._lock:
            self.idle = False
            if not self._stopped:
                self._wake()

    def _park_or_end(self, slot: ThreadSlot) -> bool:
        """Park the thread of *slot* if it is surplus; return True if the thread shall end."""
        with self._lock:
            serving = len(self._slots) - self._session.waiting()
            surplus = serving > self._target_size and any(other.idle for other in self._slots)
            if not (surplus or self._stopped):
                return False
            self._slots.discard(slot)
            if self._stopped or len(self._parked) >= _MAX_PARKED:
                return True
            slot.request.clear()
            self._parked.append(slot)
        slot.wake_up.acquire()
        return slot not in self._slots
