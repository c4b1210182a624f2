"""The threads of a session: each takes a request from the kernel to its end, then the next one.

As long as the host answers at once, one thread serves best: it finds the next request waiting and
sleeps less, and need not share the interpreter. More are there for the host's sake. The main thread
looks at the crew in short intervals while there is work. Where nobody waits for requests, because
all are held up by the host and not by the interpreter, it enlarges the crew; a handler that is
about to wait for a disk says so before (`about_to_block`): somebody takes over, and whichever of
the two finds the other one waiting leaves, so that no two take turns where one is enough. So a
system call that hangs holds up its own caller, and everybody else for two intervals at most, or
for six where others have the processors: a thread that waits for one looks much like that.

A thread inside read(2) is woken by nothing but a request. So one too many leaves after its next
one, and when nothing happens the kernel is asked for one that wants no answer (`Session.nudge`).
When the session stops, its threads are left there, and what they may still be given they do not
touch: that request is as good as never taken, and the kernel sends it again to a successor, or
fails it with the connection.

A few of those who leave are in reserve until nothing happens, to be called back for a fraction of
what a new thread costs.

A thread's few objects are made once and go from the one who leaves to the next who comes. Made
anew, they would lie among what a walk through a million files has filled the memory with, and each
would keep a megabyte of that from going back.
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

# More callers than this that all hang are beyond help; who waits for a lock does not count.
_MOST: Final = 256
# So many looks in a row with somebody waiting for requests: there are more threads than needed.
_CALM_LOOKS: Final = 20
# For so many looks in a row, a second, who gives inodes back may just have many.
_LONGEST_FORGET_LOOKS: Final = 200
# The places that are made at the start, and kept.
_KEPT: Final = 4
# So many threads are in reserve, at most: callers who sync at once come back at once.
_RESERVE: Final = 8


class Crew:
    """The threads that serve one session.

    Members change their own fields without a lock; each change is one step for the interpreter.
    Those in reserve are no members.
    """

    def __init__(
        self,
        session: Session,
        channel: Channel,
        wake: Callable[[], object],
        *,
        beside_rings: bool = False,
    ) -> None:
        """Make a crew without members; *wake* has the main thread look again, and may be lost.

        With *beside_rings* it serves what comes by /dev/fuse then, forgets and interrupts. Who is
        about to wait is no member of it, and what would wake one too many comes by the rings: so
        it grows only when something hangs, and shrinks with the next forgets.
        """
        self._session = session
        self._channel = channel
        self._wake = wake
        self._receive, self._answer, self._begin = channel.receive, session.answer, self._work
        self._beside_rings = beside_rings
        self._lock = threading.Lock()
        self._members: set[Member] = set()
        self._free: list[Member] = []
        self._reserve: list[Member] = []
        self._wanted = 1
        self._stopped = False
        self._full = False
        self._short = False
        self._held_up = self._forgetting = 0
        self._calm = self._quiet = 0
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
            OSError: not even one thread can be had (EAGAIN), or no memory for what they need.
        """
        if not self._beside_rings:
            self._session.about_to_block = self.about_to_block
            self._session.may_wait = self.may_wait
        self._session.let_others_finish = self.let_others_finish
        self._free = [Member(self._channel.open_request()) for _ in range(_KEPT)]
        self._grow(1)
        if not self._members and not self.ended:
            raise os_error(errno.EAGAIN)

    def stop(self) -> None:
        """Begin no request from now on; *wake* is not called any more."""
        with self._lock:
            self._stopped = True
            self._wanted = 0
        self._dismiss()

    def at_work(self) -> int:
        """How many requests are being handled."""
        return sum(not member.waits for member in tuple(self._members))

    def size(self) -> int:
        """How many threads serve."""
        return len(self._members)

    def about_to_block(self) -> None:
        """Somebody is about to wait for the host: see that there is somebody else for requests.

        Not to be called while acting as somebody else: a new thread is like the one that starts it.
        """
        if self.at_work() == len(self._members):
            self._join(stays=False)

    def may_wait(self, request: Request) -> bool:
        """Return whether another thread serves while that of *request* waits; try to have one.

        Where no more threads can be had, the last one must not wait for a lock: it is the one that
        the unlock will need.
        """
        with self._lock:
            if another_serves(self._members, request):
                return True
        self._join(stays=False)
        with self._lock:
            return another_serves(self._members, request)

    def let_others_finish(self, request: Request) -> bool:
        """Wait until what other threads took before *request* is done, or longer than usual.

        Returns:
            Whether there were others. If not, what was taken before is done.
        """
        if len(self._members) == 1:
            return False
        self.about_to_block()
        let_finish(tuple(self._members), request)
        return True

    def look(self) -> None:
        """See whether there are too few threads, or too many; to be called every `LOOK_S`."""
        self._channel.look()
        members = tuple(self._members)
        requests = taken(members)
        full = not any(member.waits for member in members)
        self._interval.end()
        forgets = any(member.forgets() for member in members)
        self._forgetting = self._forgetting + 1 if forgets else 0
        computes = (
            self._interval.busy
            or self._interval.fast(requests, len(members))
            or 0 < self._forgetting < _LONGEST_FORGET_LOOKS
        )
        held_up = full and self._full and not computes
        self._held_up = self._held_up + 1 if held_up else 0
        if requests:
            if self._held_up >= SLOW_LOOKS and len(members) < ENOUGH_FOR_SLOW:
                self._held_up = 0
                self._grow(1)
        elif self._held_up >= (LATE_LOOKS if self._interval.late else 1):
            self._grow(len(members))
        self._quiet = 0 if full or requests else self._quiet + 1
        self._calm = 0 if full else self._calm + 1
        self._full = full
        if self._calm >= _CALM_LOOKS:
            self._calm = 0
            self._wanted = min(self._wanted, max(1 + self.at_work(), len(members) // 2))
        if self._quiet >= QUIET_LOOKS:
            self._rest()

    def _rest(self) -> None:
        """Look no more, once those have left who are not needed, or with them if that cannot be."""
        self._quiet, self._wanted = 0, 1 + self.at_work()
        too_many = len(self._members) - self._wanted
        if too_many > 0 and self._session.nudge(too_many):
            return
        self._dismiss()
        self._interval.forget()
        self._channel.rest()
        self._session.rest()
        self.resting = True
        if self.at_work():  # one may have been taken before it could be seen that nobody looks
            self.resting = False

    def _dismiss(self) -> None:
        """Have those in reserve end."""
        with self._lock:
            reserve, self._reserve = self._reserve, []
        for member in reserve:
            member.called.release()

    def _grow(self, count: int) -> None:
        """So many threads more, until they are found not to be needed."""
        for _ in range(count):
            if not self._join(stays=True):
                return

    def _join(self, *, stays: bool) -> bool:
        """One thread more, of the reserve or a new one, if there may be one; whether it was had.

        Unless it *stays*, the next one leaves who finds somebody else waiting for requests.
        """
        with self._lock:
            if not self._has_room():
                return False
            if self._reserve:
                member = self._reserve.pop()
                self._add(member, stays=stays)
                member.called.release()
                return True
            place = self._free.pop() if self._free else None
        try:
            return self._start(place or Member(self._channel.open_request()), stays=stays)
        except (OSError, RuntimeError) as error:  # the machine has no memory, or no thread
            if not self._short:
                self._short = True
                log.warning("no more threads than %d can be had: %s", self.size(), error)
            return False

    def _start(self, member: Member, *, stays: bool) -> bool:
        """Have a new thread take the place of *member*, if there still may be one.

        Raises:
            OSError, RuntimeError: it cannot be had.
        """
        with self._lock:
            if not self._has_room():
                self._part(member)
                return False
            self._add(member, stays=stays)
        try:
            _thread.start_new_thread(self._begin, member.alone)
        except BaseException:
            with self._lock:
                self._part(member)
                self._wanted = min(self._wanted, max(1, len(self._members)))
            raise
        return True

    # Under the lock

    def _has_room(self) -> bool:
        """Whether there may be one more."""
        return not self._stopped and len(self._members) < _MOST + self._session.waiting()

    def _add(self, member: Member, *, stays: bool) -> None:
        """One thread more."""
        member.waits = True
        self._members.add(member)
        if stays:
            self._wanted = len(self._members)

    def _part(self, member: Member) -> None:
        """One thread less, whose place is free."""
        self._members.discard(member)
        member.request.clear()
        if len(self._free) < _KEPT:
            self._free.append(member)

    # In each thread

    def _work(self, me: Member) -> None:
        try:
            self._serve(me)
        except Exception as error:  # a thread less is a caller that waits for ever, and soon all
            log.exception("the connection to the kernel is broken")
            self.error, self.ended = error, True
        finally:
            me.waits = True
            with self._lock:
                self._part(me)
                if self.ended and not self._stopped:
                    self._wake()

    def _serve(self, me: Member) -> None:
        receive, answer = self._receive, self._answer
        request, channel = me.request, self._channel
        while receive(request):
            me.waits = False
            me.count += 1
            if self.resting:
                self._look_again()
            if self._stopped:
                return
            answer(request, channel)
            if len(self._members) > self._wanted and self._leaves(me):
                return
            me.waits = True
        self.ended = True

    def _look_again(self) -> None:
        with self._lock:
            self.resting = False
            if not self._stopped:
                self._wake()

    def _leaves(self, me: Member) -> bool:
        """Whether others are enough, or nothing is to come, and nobody calls this one back."""
        with self._lock:
            serving = len(self._members) - self._session.waiting()
            enough = serving > self._wanted and any(member.waits for member in self._members)
            if not (enough or self._stopped):
                return False
            self._members.discard(me)
            if self._stopped or len(self._reserve) >= _RESERVE:
                return True
            me.request.clear()
            self._reserve.append(me)
        me.called.acquire()
        return me not in self._members
