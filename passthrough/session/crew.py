"""The threads of a session: each takes a request from the kernel to its end, then the next one.

As long as the host answers at once, one thread serves best: it finds the next request waiting and
sleeps less, and need not share the interpreter. More are there for the host's sake. The main thread
looks at the crew in short intervals while there is work. Where nobody waits for requests, because
all are held up by the host and not by the interpreter, it enlarges the crew; a handler that is
about to wait for a disk says so before (`about_to_block`). Who is not needed any more leaves. So a
system call that hangs holds up its own caller, and everybody else for two intervals at most.

A thread inside read(2) is woken by nothing but a request. So one too many leaves after its next
one. When the session stops, its threads are left there, and what they may still be given they do
not touch: that request is as good as never taken, and the kernel sends it again to a successor, or
fails it with the connection.
"""

import _thread
import errno
import logging
import resource
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from passthrough.errors import os_error
from passthrough.session.channel import Channel
from passthrough.session.request import Request
from passthrough.session.session import Session

log = logging.getLogger(__name__)

# How often the main thread looks while there is work: a compromise between the time that callers
# wait for a thread and the processor time that looking takes.
LOOK_S: Final = 0.005
# More callers than this that all hang are beyond help; who waits for a lock does not count.
_MOST: Final = 256
# So many looks in a row are believed though they come late, as on a machine with too much to do.
LATE_LOOKS: Final = 4
# Where the host is slow and not stuck, more callers at once than this gain little.
_ENOUGH_FOR_SLOW: Final = 8
# The part of the time that goes into computing from which on nobody is held up by the host. A
# FORGET of tens of thousands of inodes takes longer than a look, and no second thread hurries it.
_BUSY: Final = 0.4
# So many looks in a row with somebody waiting for requests: there are more threads than needed.
_CALM_LOOKS: Final = 100
# So many looks in a row without a request: the main thread stops looking until there is one.
QUIET_LOOKS: Final = 20


class Interval:
    """The time between two looks: whether the host had it, or this process."""

    def __init__(self) -> None:
        self._looked = self._computed = 0.0
        self.busy = False
        """Whether it was this process that was busy meanwhile, rather than the host."""
        self.late = False
        """Whether it was long: others have the processors, and the look says little by itself."""

    def end(self) -> None:
        """Look at the one that ends, and begin another."""
        now, computed = time.monotonic(), _computed()
        elapsed = now - self._looked
        self.busy = computed - self._computed > elapsed * _BUSY
        self.late = elapsed > 2 * LOOK_S
        self._looked, self._computed = now, computed


class _Member:
    """One thread, as the main thread sees it."""

    __slots__ = ("taken", "waits")

    def __init__(self) -> None:
        self.waits = True
        """Whether it waits for a request."""
        self.taken = 0
        """How many it has had."""


class Crew:
    """The threads that serve one session.

    Members change their own fields without a lock; each change is one step for the interpreter.
    """

    def __init__(self, session: Session, channel: Channel, wake: Callable[[], object]) -> None:
        """Make a crew without members; *wake* has the main thread look again, and may be lost."""
        self._session = session
        self._channel = channel
        self._wake = wake
        self._lock = threading.Lock()
        self._members: set[_Member] = set()
        self._wanted = 1
        self._stopped = False
        self._full = False
        self._short = False
        self._held_up = 0
        self._taken = self._calm = self._quiet = 0
        self._interval = Interval()
        self.resting = False
        """Whether nothing happens, and nobody need look until woken."""
        self.ended = False
        """Whether there will be no more requests."""
        self.error: Exception | None = None
        """What broke the transport."""

    def start(self) -> None:
        """Begin to serve.

        Raises:
            OSError: EAGAIN, not even one thread can be had.
        """
        self._session.about_to_block = self.about_to_block
        self._grow(1)
        if not self._members and not self.ended:
            raise os_error(errno.EAGAIN)

    def stop(self) -> None:
        """Begin no request from now on; *wake* is not called any more."""
        with self._lock:
            self._stopped = True
            self._wanted = 0

    def at_work(self) -> int:
        """How many requests are being handled."""
        return sum(not member.waits for member in tuple(self._members))

    def size(self) -> int:
        """How many threads there are."""
        return len(self._members)

    def about_to_block(self) -> None:
        """Somebody is about to wait for the host: see that there is somebody else for requests.

        Not to be called while acting as somebody else: a new thread is like the one that starts it.
        """
        if self.at_work() == len(self._members):
            self._grow(1)

    def look(self) -> None:
        """See whether there are too few threads, or too many; to be called every `LOOK_S`."""
        members = tuple(self._members)
        taken = sum(member.taken for member in members)
        full = not any(member.waits for member in members)
        self._interval.end()
        held_up = full and self._full and not self._interval.busy
        self._held_up = self._held_up + 1 if held_up else 0
        if self._held_up >= (LATE_LOOKS if self._interval.late else 1):
            if taken == self._taken:
                self._grow(len(members))
            elif len(members) < _ENOUGH_FOR_SLOW:
                self._grow(1)
        self._quiet = 0 if full or taken != self._taken else self._quiet + 1
        self._calm = 0 if full else self._calm + 1
        self._taken, self._full = taken, full
        if self._calm >= _CALM_LOOKS:
            self._calm, self._wanted = 0, max(1, len(members) // 2)
        if self._quiet >= QUIET_LOOKS:
            self._rest()

    def _rest(self) -> None:
        self._quiet, self._wanted = 0, 1
        self.resting = True
        if self.at_work():  # one may have been taken before it could be seen that nobody looks
            self.resting = False

    def _grow(self, count: int) -> None:
        with self._lock:
            if self._stopped:
                return
            most = _MOST + self._session.waiting()
            count = max(0, min(count, most - len(self._members)))
            newcomers = [_Member() for _ in range(count)]
            self._members.update(newcomers)
            self._wanted = len(self._members)
        for number, member in enumerate(newcomers):
            try:
                _thread.start_new_thread(self._work, (member, self._channel.open_request()))
            except (OSError, RuntimeError) as error:
                self._do_without(newcomers[number:], error)
                return

    def _do_without(self, missing: Sequence[_Member], error: Exception) -> None:
        """Go on with those that there are: the machine has no memory, or no thread, for more."""
        with self._lock:
            self._members.difference_update(missing)
            self._wanted = min(self._wanted, max(1, len(self._members)))
        if not self._short:
            self._short = True
            log.warning("no more threads than %d can be had: %s", self._wanted, error)

    def _work(self, me: _Member, request: Request) -> None:
        try:
            self._serve(me, request)
        except Exception as error:  # a thread less is a caller that waits for ever, and soon all
            log.exception("the connection to the kernel is broken")
            self.error, self.ended = error, True
        finally:
            me.waits = True
            with self._lock:
                self._members.discard(me)
                if self.ended and not self._stopped:
                    self._wake()

    def _serve(self, me: _Member, request: Request) -> None:
        receive, answer, channel = self._channel.receive, self._session.answer, self._channel
        while receive(request):
            me.waits = False
            me.taken += 1
            if self.resting:
                self._look_again()
            if self._stopped:
                return
            answer(request, channel)
            if len(self._members) > self._wanted and self._leave(me):
                return
            me.waits = True
        self.ended = True

    def _look_again(self) -> None:
        with self._lock:
            self.resting = False
            if not self._stopped:
                self._wake()

    def _leave(self, me: _Member) -> bool:
        """Leave, if there are still more than are wanted."""
        with self._lock:
            too_many = len(self._members) > self._wanted
            if too_many:
                self._members.discard(me)
        return too_many


def _computed() -> float:
    """The processor time that this process has spent, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
