"""The threads that serve over io_uring: for each processor some, tied to it, with an entry each.

The kernel gives a request to the entry that was free last, so that one thread of a processor does
all the work as long as it keeps up, on the processor where the request was made: nobody is woken
elsewhere. The other is there for when the host holds that one up. When neither waits for requests
any more, the main thread looks at them in short intervals, as it does at the crew of /dev/fuse. If
it is the host that holds them up, and not the interpreter, it doubles their number. What the
process computes meanwhile may be for other processors: so it does that, too, where none of them has
come to an end for ten looks.

No thread leaves before the connection ends: an entry cannot be taken back.
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
    ENOUGH_FOR_SLOW,
    LATE_LOOKS,
    QUIET_LOOKS,
    SLOW_LOOKS,
    Interval,
    Member,
    another_serves,
    let_finish,
    taken,
)

log = logging.getLogger(__name__)

# So many callers of one processor that all hang are beyond help.
_MOST: Final = 64
# For each processor at the start: one to serve, and one to wait meanwhile.
_FIRST: Final = 2
# So many inodes are tried for a regular file that the kernel knows.
_TRIED: Final = 256
# How long it may take threads to start and the kernel to take their entries.
_START_LIMIT_S: Final = 10.0


class _Queue:
    """One processor's threads."""

    __slots__ = ("full", "held_up", "members", "processor", "size", "stuck")

    def __init__(self, processor: int) -> None:
        self.processor = processor
        self.size = 0
        """How many threads there are, with those that just start."""
        self.members: list[Member] = []
        """Those that serve."""
        self.full = False
        """Whether none waited for a request when they were looked at."""
        self.held_up = 0
        """For how many looks in a row the host has held all of them up."""
        self.stuck = 0
        """For how many looks in a row none of them has come to an end, whatever others do."""

    def all_at_work(self) -> bool:
        """Whether none waits for a request."""
        return not any(member.waits for member in self.members)


class Queues:
    """All threads of one session, of every processor that the machine may have."""

    def __init__(
        self,
        session: Session,
        open_channel: Callable[[int], RingChannel],
        processors: Sequence[int],
        wake: Callable[[], object],
    ) -> None:
        """Make queues without threads.

        *open_channel* makes a channel to a processor's queue, for the thread that calls it; *wake*
        has the main thread look again.
        """
        self._session = session
        self._open_channel = open_channel
        self._wake = wake
        self._lock = threading.Lock()
        self._queues = [_Queue(processor) for processor in processors]
        self._hurries = itertools.count()
        self._stopped = False
        self._short = False
        self._quiet = 0
        self._interval = Interval()
        self.resting = True
        """Whether there are threads enough, and nobody need look until woken."""
        self.error: Exception | None = None
        """What broke the transport."""

    @property
    def in_use(self) -> bool:
        """Whether requests come this way, and only forgets and interrupts by /dev/fuse."""
        return bool(self._queues)

    def start(self) -> None:
        """Have threads wait for requests of every processor; there may be none.

        Raises:
            OSError: the kernel does not take their entries.
        """
        if not self.in_use:
            return
        self._session.let_others_finish = self.let_others_finish
        self._session.may_wait = self.may_wait
        started: SimpleQueue[OSError | None] = SimpleQueue()
        for queue in (queue for queue in self._queues for _ in range(_FIRST)):
            self._grow(queue, started.put)
            try:
                error = started.get(timeout=_START_LIMIT_S)
            except Empty:
                raise os_error(errno.ETIMEDOUT) from None
            if error is not None and error.errno in THE_END:
                return  # it was unmounted as soon as it was there, and /dev/fuse tells of it
            if error is not None:
                raise error

    def stop(self) -> None:
        """Begin no request from now on."""
        with self._lock:
            self._stopped = True

    def at_work(self) -> int:
        """How many requests are being handled."""
        return sum(not member.waits for member in self._members())

    def size(self) -> int:
        """How many threads there are."""
        return sum(queue.size for queue in self._queues)

    def let_others_finish(self, request: Request) -> bool:
        """Wait until what other threads took before *request* is done, or longer than usual.

        Returns:
            Whether there were others: always.
        """
        let_finish(self._members(), request)
        return True

    def may_wait(self, request: Request) -> bool:
        """Return whether another thread serves the processor of *request* meanwhile, as in a crew.

        A new thread counts once the kernel has its entry.
        """
        queue = next(
            queue for queue in self._queues for one in queue.members if one.request is request
        )
        if not another_serves(tuple(queue.members), request):
            started: SimpleQueue[OSError | None] = SimpleQueue()
            if self._grow(queue, started.put):
                with contextlib.suppress(Empty):
                    self._log_failure(started.get(timeout=_START_LIMIT_S))
        return another_serves(tuple(queue.members), request)

    def _members(self) -> list[Member]:
        return [member for queue in self._queues for member in queue.members]

    def look(self) -> None:
        """See whether there are too few threads; to be called every `LOOK_S` unless `resting`."""
        self._interval.end()
        enough = LATE_LOOKS if self._interval.late else 1
        self._quiet += 1
        for queue in self._queues:
            requests, full = taken(queue.members), queue.all_at_work()
            if full:
                self._quiet = 0
            starting = len(queue.members) < queue.size
            computes = self._interval.busy or self._interval.fast(requests, len(queue.members))
            held_up = full and queue.full and not starting and not computes
            queue.held_up = queue.held_up + 1 if held_up else 0
            queue.stuck = queue.stuck + 1 if full and not requests and not starting else 0
            if requests:
                if queue.held_up >= SLOW_LOOKS and queue.size < ENOUGH_FOR_SLOW:
                    queue.held_up = 0
                    self._grow(queue, self._log_failure)
            elif queue.held_up >= enough or queue.stuck >= SLOW_LOOKS:
                queue.stuck = 0
                for _ in range(queue.size):
                    if not self._grow(queue, self._log_failure):
                        break
            queue.full = full
        if self._quiet >= QUIET_LOOKS:
            self._quiet, self.resting = 0, True
            self._interval.forget()
            # One may have filled up before it could be seen that nobody looks.
            self.resting = not any(queue.all_at_work() for queue in self._queues)

    def _look_again(self) -> None:
        with self._lock:
            self.resting = False
            if not self._stopped:
                self._wake()

    def _grow(self, queue: _Queue, started: Callable[[OSError | None], object]) -> bool:
        """Start one more thread, unless there are as many as there may be."""
        with self._lock:
            if queue.size >= _MOST + self._session.waiting() or self._stopped:
                return False
            queue.size += 1
            urgent = queue.size > _FIRST
        try:
            _thread.start_new_thread(self._work, (queue, urgent, started))
        except RuntimeError as error:  # which is what Python makes of EAGAIN here
            with self._lock:
                queue.size -= 1
            self._log_failure(failure := OSError(errno.EAGAIN, str(error)))
            started(failure)
            return False
        return True

    def _log_failure(self, error: OSError | None) -> None:
        if error is not None and not self._short:
            self._short = True
            log.warning("no more threads than %d can be had: %s", self.size(), error)

    def _work(
        self, queue: _Queue, urgent: bool, started: Callable[[OSError | None], object]
    ) -> None:
        try:
            _stay_on(queue.processor)
            channel = self._open_channel(queue.processor)
            if urgent:
                channel.hurry(next(self._hurries), self._session.fs.inodes.latest(_TRIED))
        except OSError as error:
            with self._lock:
                queue.size -= 1
            started(error)
            return
        try:
            self._serve(queue, channel, started)
        except Exception as error:  # a thread less is a caller that waits for ever, and soon all
            log.exception("the connection to the kernel is broken")
            self.error = error
            with self._lock:
                if not self._stopped:
                    self._wake()

    def _serve(
        self, queue: _Queue, channel: RingChannel, started: Callable[[OSError | None], object]
    ) -> None:
        receive, answer, request = channel.receive, self._session.answer, channel.open_request()
        me = Member(request)
        queue.members.append(me)
        started(None)
        try:
            while receive(request):
                me.waits = False
                me.count += 1
                if self.resting and queue.all_at_work():
                    self._look_again()
                if self._stopped:
                    return
                answer(request, channel)
                me.waits = True
        finally:
            me.waits = True


def _stay_on(processor: int) -> None:
    """Tie this thread to a processor, if there is such a one now and this process may use it."""
    try:
        os.sched_setaffinity(0, {processor})
    except OSError as error:
        log.debug("no thread on processor %d: %s", processor, error)
