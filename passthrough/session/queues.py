"""The threads that serve over io_uring: for each processor some, tied to it, with an entry each.

The kernel gives a request to the entry that was free last, so that one thread of a processor does
all the work as long as it keeps up, on the processor where the request was made: nobody is woken
elsewhere. The others are there for when the host holds that thread up. One always waits; who takes
a request and sees that nobody waits any more starts another before it goes on. That one would come
too late for a request that is there already, because the kernel looks for those only when an answer
comes; so it must not be the last one's turn to be held up.

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
from passthrough.session.rings import RingChannel
from passthrough.session.session import Session

log = logging.getLogger(__name__)

# So many callers of one processor that all hang are beyond help.
_MOST: Final = 64
# For each processor at the start: one to serve, and one to wait meanwhile.
_FIRST: Final = 2
# How long it may take threads to start and the kernel to take their entries.
_START_LIMIT_S: Final = 10.0


class _Queue:
    """One processor's threads."""

    __slots__ = ("processor", "size", "waiting")

    def __init__(self, processor: int) -> None:
        self.processor = processor
        self.size = 0
        """How many threads there are."""
        self.waiting: list[None] = []
        """One for each that waits for a request; a list, because its changes are single steps."""


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
        is called when the transport breaks.
        """
        self._session = session
        self._open_channel = open_channel
        self._wake = wake
        self._lock = threading.Lock()
        self._queues = [_Queue(processor) for processor in processors]
        self._stopped = False
        self.error: OSError | None = None
        """What broke the transport."""

    def start(self) -> None:
        """Have threads wait for requests of every processor.

        Raises:
            OSError: the kernel does not take their entries.
        """
        started: SimpleQueue[OSError | None] = SimpleQueue()
        count = sum(self._grow(queue, started.put) for queue in self._queues for _ in range(_FIRST))
        for _ in range(count):
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

    def _grow(self, queue: _Queue, started: Callable[[OSError | None], object]) -> bool:
        """Start one more thread, unless there are as many as there may be."""
        with self._lock:
            if queue.size >= _MOST or self._stopped:
                return False
            queue.size += 1
        _thread.start_new_thread(self._work, (queue, started))
        return True

    def _work(self, queue: _Queue, started: Callable[[OSError | None], object]) -> None:
        try:
            _stay_on(queue.processor)
            channel = self._open_channel(queue.processor)
        except OSError as error:
            with self._lock:
                queue.size -= 1
            started(error)
            return
        try:
            self._serve(queue, channel, started)
        except OSError as error:
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
            if not waiting:
                self._grow(queue, _log_failure)
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
        log.warning("no more threads: %s", error)
