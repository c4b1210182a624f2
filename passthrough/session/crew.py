"""The threads of a session: each takes a request from the kernel to its end, then the next one.

One more thread waits for a request than are at work, always: who takes one and leaves nobody behind
starts another first. So a system call that hangs, on a disk or a server that does not answer, holds
up its own caller and nobody else. Who is done and finds enough others waiting leaves.

A thread that has stopped is not woken: it waits inside read(2), which nothing but a request ends.
It is therefore left there, and what it may still be given it does not touch. That request is then
as good as never taken: the kernel sends it again to a successor, or fails it with the connection.
"""

import _thread
import logging
import threading
from collections.abc import Callable
from typing import Final

from passthrough.session.channel import Channel
from passthrough.session.session import Session

log = logging.getLogger(__name__)

# How many wait at most. Each may hold the memory of its longest request, MAX_WRITE.
_SPARE: Final = 3
# More callers than this that all hang are beyond help.
_MOST: Final = 256


class Crew:
    """The threads that serve one session."""

    def __init__(self, session: Session, channel: Channel, ended: Callable[[], object]) -> None:
        """Make a crew without members; *ended* is called when there will be no more requests."""
        self._session = session
        self._channel = channel
        self._ended = ended
        self._ending = threading.Lock()
        self._stopped = False
        # Adding to these and taking away is one step for the interpreter: no lock is needed.
        self._members: set[int] = set()
        self._waiting: set[int] = set()
        self.ended = False
        """Whether there will be no more requests."""
        self.error: OSError | None = None
        """What broke the transport."""

    def start(self) -> None:
        """Begin to serve."""
        _thread.start_new_thread(self._work, ())

    def stop(self) -> None:
        """Begin no request from now on; *ended* is not called any more."""
        with self._ending:
            self._stopped = True

    def at_work(self) -> int:
        """How many requests are being handled."""
        return len(self._members - self._waiting)

    def _work(self) -> None:
        me = _thread.get_ident()
        self._members.add(me)
        try:
            self._serve(me)
        except OSError as error:
            log.exception("the connection to the kernel is broken")
            self.error, self.ended = error, True
        finally:
            self._waiting.discard(me)
            self._members.discard(me)
            with self._ending:
                if self.ended and not self._stopped:
                    self._ended()

    def _serve(self, me: int) -> None:
        receive, answer, waiting = self._channel.receive, self._session.answer, self._waiting
        request = self._channel.open_request()
        waiting.add(me)
        while receive(request):
            waiting.discard(me)
            if self._stopped:
                return
            if not waiting and len(self._members) < _MOST:
                self.start()
            answer(request)
            if len(waiting) >= _SPARE:
                return
            waiting.add(me)
        self.ended = True
