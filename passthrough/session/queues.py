"""The threads that serve over io_uring: for each processor some, tied to it, with an entry each.

The kernel gives a request to the entry that was free last, so that one thread of a processor does
all the work as long as it keeps up, on the processor where the request was made: nobody is woken
elsewhere. The other is there for when the host holds that one up. When neither waits for requests
any more, the main thread looks at them in short intervals, as it does at the crew of /dev/fuse. If
it is the host that holds them up, and not the interpreter, it doubles their number.

No thread leaves before the connection ends: an entry cannot be taken back.
"""

import _thread
import errno
import logging
import os
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final

from passthrough.errors import os_error
from passthrough.session.crew import LATE_LOOKS, QUIET_LOOKS, Interval
from passthrough.session.rings import RingChannel
from passthrough.session.session import Session

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

    __slots__ = ("full", "held_up", "processor", "seen", "size", "taken", "waiting")

    def __init__(self, processor: int) -> None:
        self.processor = processor
        self.size = 0
        """How many threads there are."""
        self.waiting: list[None] = []
        """One for each that waits for a request; a list, because its changes are single steps."""
        self.taken = 0
        """How many requests there have been, or a few less: for seeing that there are some."""
        self.seen = 0
        self.full = False
        """What `taken` was, and whether none waited, when it was looked at."""
        self.held_up = 0
        """For how many looks in a row the host has held all of them up."""


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
        self._stopped = False
        self._quiet = 0
        self._interval = Interval()
        self.resting = True
        """Whether there are threads enough, and nobody need look until woken."""
        self.error: Exception | None = None
        """What broke the transport."""

    def start(self) -> None:
        """Have threads wait for requests of every processor.

        Raises:
            OSError: the kernel does not take their entries.
        """
        started: SimpleQueue[OSError | None] = SimpleQueue()
        for queue in (queue for queue in self._queues for _ in range(_FIRST)):
            self._grow(queue, started.put)
            try:
                error = started.get(timeout=_START_LIMIT_S)
            except Empty:
                raise os_error(errno.ETIMEDOUT) from None
            if error is not None:
                raise error

    def stop(self) -> None:
        """Begin no request from now on."""
        with self._lock:
            self._stopped = True

    def at_work(self) -> int:
        """How many requests are being handled."""
        return sum(queue.size - len(queue.waiting) for queue in self._queues)

    def size(self) -> int:
        """How many threads there are."""
        return sum(queue.size for queue in self._queues)

    def look(self) -> None:
        """See whether there are too few threads; to be called every `LOOK_S` unless `resting`."""
        self._interval.end()
        enough = LATE_LOOKS if self._interval.late else 1
        self._quiet += 1
        for queue in self._queues:
            taken, full = queue.taken, not queue.waiting
            if full:
                self._quiet = 0
            held_up = full and queue.full and not self._interval.busy
            queue.held_up = queue.held_up + 1 if held_up else 0
            if queue.held_up >= enough:
                for _ in range(queue.size if taken == queue.seen else 1):
                    self._grow(queue, _log_failure)
            queue.seen, queue.full = taken, full
        if self._quiet >= QUIET_LOOKS:
            self._quiet, self.resting = 0, True
            # One may have filled up before it could be seen that nobody looks.
            self.resting = all(queue.waiting for queue in self._queues)

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
            number = queue.size
        try:
            _thread.start_new_thread(self._work, (queue, number, started))
        except RuntimeError as error:  # which is what Python makes of EAGAIN here
            with self._lock:
                queue.size -= 1
            started(OSError(errno.EAGAIN, str(error)))
            return False
        return True

    def _work(
        self, queue: _Queue, number: int, started: Callable[[OSError | None], object]
    ) -> None:
        try:
            _stay_on(queue.processor)
            channel = self._open_channel(queue.processor)
            if number > _FIRST:
                inodes = self._session.fs.inodes.latest(_TRIED)
                channel.hurry(queue.processor * _MOST + number, inodes)
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
        receive, answer, waiting = channel.receive, self._session.answer, queue.waiting
        request = channel.open_request()
        waiting.append(None)
        started(None)
        while receive(request):
            waiting.pop()
            queue.taken += 1
            if not waiting and self.resting:
                self._look_again()
            if self._stopped:
                break
            answer(request, channel)
            waiting.append(None)


def _stay_on(processor: int) -> None:
    """Tie this thread to a processor, if there is such a one now and this process may use it."""
    try:
        os.sched_setaffinity(0, {processor})
    except OSError as error:
        log.debug("no thread on processor %d: %s", processor, error)


def _log_failure(error: OSError | None) -> None:
    if error is not None:
        log.warning("no more threads can be had: %s", error)
