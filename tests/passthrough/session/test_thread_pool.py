"""The threads: who serves when callers hang, who leaves, and how all of them stop."""

import _thread
import mmap
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import cast
from unittest.mock import Mock

import pytest

from passthrough.session import abi, thread_pool as crew_module
from passthrough.session.abi import Opcode
from passthrough.session.request import Request
from passthrough.session.session import Session
from passthrough.session.thread_pool import _CALM_LOOKS, _KEPT, _RESERVE, Crew
from passthrough.session.thread_slots import _MOST_PASS_S, LOOK_S, QUIET_LOOKS, SLOW_LOOKS
from passthrough.session.wire import FIXED
from tests.support.fakes.kernel import START, FakeChannel, message

LIMIT_S = 20.0
NUDGE = 1_000_000


class Queued(FakeChannel):
    """A channel whose requests come when a test puts them; None is the end."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: queue.Queue[int | None] = queue.Queue()
        self.kinds = {NUDGE: Opcode.NOTIFY_REPLY}
        self.places = 0
        self.rests = 0

    def rest(self) -> None:
        self.rests += 1

    def open_request(self) -> Request:
        self.places += 1
        return Request(mmap.mmap(-1, 4096), START)

    def receive(self, request: Request) -> bool:
        unique = self.waiting.get()
        if unique is None:
            self.waiting.put(None)  # for the others, as ENODEV is
            return False
        opcode = self.kinds.get(unique, Opcode.GETATTR)
        raw = message(opcode, b"\0" * FIXED[opcode].size, abi.ROOT_ID, unique)
        request.into[0][: len(raw)] = raw
        request.length = len(raw)
        return True

    def reply(self, unique: int, body: bytes) -> None:
        raise NotImplementedError

    def fail(self, unique: int, number: int) -> None:
        raise NotImplementedError

    def notify(self, code: int, parts: Sequence[bytes]) -> None:
        raise NotImplementedError


def _nothing() -> None:
    pass


class Hanging:
    """A session whose odd requests wait until they are let go."""

    def waiting(self) -> int:
        return 0

    def rest(self) -> None:
        self.rests += 1

    def nudge(self, count: int) -> bool:
        for _ in range(count if self.knows_a_file else 0):
            self._channel.waiting.put(NUDGE)
        return self.knows_a_file

    def __init__(self, channel: Queued) -> None:
        self._channel = channel
        self.knows_a_file = True
        self.rests = 0
        self.begun: queue.Queue[int] = queue.Queue()
        self.done: queue.Queue[int] = queue.Queue()
        self.go = threading.Event()
        self.about_to_block: Callable[[], None] = _nothing

    def answer(self, request: Request, _channel: object) -> None:
        request.decode()
        unique = request.unique
        if unique == NUDGE:
            return
        self.begun.put(unique)
        if unique % 2:
            assert self.go.wait(LIMIT_S)
        self.done.put(unique)


def _no_thread(*_: object) -> int:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def channel() -> Queued:
    return Queued()


@pytest.fixture
def session(channel: Queued) -> Hanging:
    return Hanging(channel)


@pytest.fixture
def woken() -> threading.Event:
    return threading.Event()


@pytest.fixture
def crew(session: Hanging, channel: Queued, woken: threading.Event) -> Iterator[Crew]:
    crew = Crew(cast("Session", session), channel, woken.set)
    crew.start()
    yield crew
    session.go.set()
    channel.waiting.put(None)
    until(lambda: not crew.size())
    crew.stop()  # for those in reserve


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does; the test's own limit ends a wait in vain."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


def look_until(crew: Crew, condition: Callable[[], bool]) -> None:
    """Look after the crew, as the main thread does, until something is so."""

    def looked() -> bool:
        crew.look()
        return condition()

    until(looked)


def hang(crew: Crew, channel: Queued, unique: int = 1) -> None:
    """Have one more thread at work that comes to no end until it is let go."""
    wanted = crew.at_work() + 1
    channel.waiting.put(unique)
    until(lambda: crew.at_work() == wanted)


def test_one_thread_serves_as_long_as_nothing_hangs(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    for unique in range(0, 200, 2):
        channel.waiting.put(unique)

    look_until(crew, lambda: session.done.qsize() == 100)

    assert crew.size() <= 2  # a second one, should the machine be slow enough to look like the host


def test_callers_that_hang_hold_up_nobody_else(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    for unique in range(1, 101, 2):
        channel.waiting.put(unique)
    channel.waiting.put(2)

    look_until(crew, lambda: session.begun.qsize() == 51)

    assert session.done.get(timeout=LIMIT_S) == 2
    until(lambda: crew.at_work() == 50)


def test_who_is_about_to_wait_has_somebody_take_over_at_once(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    hang(crew, channel)

    session.about_to_block()
    channel.waiting.put(2)

    assert session.done.get(timeout=LIMIT_S) == 2


def test_one_who_gives_way_waits_for_what_others_have_in_hand(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    mine = channel.open_request()
    assert not crew.let_others_finish(mine)  # there are none
    hang(crew, channel)
    crew.about_to_block()
    begun = time.monotonic()
    assert crew.let_others_finish(mine)  # who takes longer than one can wait
    assert time.monotonic() - begun >= _MOST_PASS_S
    timer = threading.Timer(0.001, session.go.set)
    timer.start()

    while session.done.empty():
        crew.let_others_finish(mine)

    timer.join()
    until(lambda: crew.size() == 1)
    assert not crew.let_others_finish(mine)  # who has left has finished


def test_who_gives_way_has_somebody_take_over(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    hang(crew, channel, 1)
    crew.about_to_block()
    hang(crew, channel, 3)
    assert crew.size() == 2
    channel.waiting.put(2)

    assert crew.let_others_finish(channel.open_request())

    assert session.done.get(timeout=LIMIT_S) == 2


def test_those_who_are_not_needed_any_more_leave_with_their_next_request(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    for unique in range(1, 41, 2):
        channel.waiting.put(unique)
    look_until(crew, lambda: crew.at_work() == 20)
    session.go.set()
    until(lambda: crew.at_work() == 0)
    assert crew.size() >= 20

    for _ in range(_CALM_LOOKS + QUIET_LOOKS):
        crew.look()
    for unique in range(0, 200, 2):
        channel.waiting.put(unique)

    until(lambda: crew.size() == 1)
    until(lambda: session.done.qsize() == 120)


def test_those_who_are_not_needed_any_more_leave_though_nothing_happens(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    for unique in range(1, 41, 2):
        channel.waiting.put(unique)
    look_until(crew, lambda: crew.at_work() == 20)
    session.go.set()

    look_until(crew, lambda: crew.size() == 1)

    look_until(crew, lambda: crew.resting)
    assert session.done.qsize() == 20


def test_who_cannot_be_woken_stays_and_nobody_looks(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    session.knows_a_file = False
    channel.waiting.put(1)
    look_until(crew, lambda: crew.size() > 1)
    size = crew.size()
    session.go.set()

    look_until(crew, lambda: crew.resting)

    assert crew.size() == size


def test_beside_one_who_hangs_there_is_somebody_for_the_next_request(
    channel: Queued, crew: Crew
) -> None:
    channel.waiting.put(1)
    look_until(crew, lambda: crew.size() == 2)
    for _ in range(3 * QUIET_LOOKS):
        crew.look()

    assert crew.size() == 2
    assert not crew.resting


def test_a_host_that_is_slow_gets_more_threads_but_not_at_once(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    """Who waits for a processor looks like that for a moment, too."""
    looks = 0
    while crew.size() == 1:
        session.go.clear()
        channel.waiting.put(2 * looks + 1)
        until(lambda: crew.at_work() == 1)
        time.sleep(LOOK_S)
        crew.look()
        looks += 1
        session.go.set()
        until(lambda: not crew.at_work())

    assert looks > SLOW_LOOKS
    assert crew.size() == 2


def test_who_serves_many_requests_is_not_held_up(channel: Queued, crew: Crew) -> None:
    """It is at work at each look, and computes little: others have the processors."""
    hang(crew, channel)
    (member,) = crew._members

    for _ in range(3 * SLOW_LOOKS):
        time.sleep(LOOK_S)
        member.count += 10_000
        crew.look()

    assert crew.size() == 1


def test_a_long_forget_is_nobody_who_hangs(channel: Queued, crew: Crew) -> None:
    channel.kinds[1] = Opcode.BATCH_FORGET
    hang(crew, channel)

    for _ in range(10):
        time.sleep(LOOK_S)
        crew.look()

    assert crew.size() == 1


def test_who_comes_back_leaves_it_to_who_took_over(
    session: Hanging, channel: Queued, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two who take turns cost twice as much as one; and who has left is called back."""
    start = Mock(wraps=_thread.start_new_thread)
    monkeypatch.setattr(_thread, "start_new_thread", start)
    for unique in range(1, 41, 2):
        session.go.clear()
        hang(crew, channel, unique)
        crew.about_to_block()
        assert crew.size() == 2
        channel.waiting.put(unique + 1)  # which the one who took over stays for
        assert session.done.get(timeout=LIMIT_S) == unique + 1
        until(lambda: crew.at_work() == 1)
        assert crew.size() == 2

        session.go.set()

        assert session.done.get(timeout=LIMIT_S) == unique
        until(lambda: crew.size() == 1)
        until(lambda: not crew.at_work())
    start.assert_called_once()

    look_until(crew, lambda: crew.resting)  # now those in reserve have left, too

    until(lambda: len(crew._free) == _KEPT - 1)


def test_no_more_than_a_few_are_in_reserve(session: Hanging, channel: Queued, crew: Crew) -> None:
    waiting = _RESERVE + 3
    for count in range(1, waiting + 1):
        hang(crew, channel, 2 * count + 1)
        crew.about_to_block()
    assert crew.size() == waiting + 1

    session.go.set()

    until(lambda: crew.size() == 1)
    until(lambda: session.done.qsize() == waiting)
    assert len(crew._reserve) == _RESERVE
    channel.waiting.put(2)
    until(lambda: session.done.qsize() == waiting + 1)


def test_those_in_reserve_end_with_the_session(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    hang(crew, channel)
    crew.about_to_block()
    session.go.set()
    until(lambda: crew.size() == 1)
    free = len(crew._free)

    crew.stop()

    until(lambda: len(crew._free) == free + 1)


def test_those_who_come_take_the_places_of_those_who_left(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    for _ in range(2 * _KEPT):
        hang(crew, channel)
        crew.about_to_block()
        session.go.set()
        look_until(crew, lambda: crew.size() == 1 and crew.resting)
        until(lambda: len(crew._free) == _KEPT - 1)
        session.go.clear()

    assert channel.places == _KEPT


def test_nobody_looks_while_nothing_happens(
    session: Hanging, channel: Queued, crew: Crew, woken: threading.Event
) -> None:
    for _ in range(QUIET_LOOKS):
        assert not crew.resting
        crew.look()
    assert crew.resting
    assert session.rests == channel.rests == 1
    assert not woken.is_set()

    channel.waiting.put(2)

    assert session.done.get(timeout=LIMIT_S) == 2
    assert woken.wait(LIMIT_S)
    assert not crew.resting


def test_the_end_is_told(channel: Queued, crew: Crew, woken: threading.Event) -> None:
    channel.waiting.put(None)

    assert woken.wait(LIMIT_S)
    assert crew.ended
    assert crew.error is None


def test_who_has_stopped_touches_nothing_any_more(
    session: Hanging, channel: Queued, crew: Crew, woken: threading.Event
) -> None:
    hang(crew, channel)
    crew.about_to_block()

    crew.stop()
    channel.waiting.put(2)
    until(channel.waiting.empty)
    session.go.set()
    until(lambda: crew.at_work() == 0)

    assert session.done.get(timeout=LIMIT_S) == 1
    assert session.begun.qsize() == 1
    assert not woken.is_set()


def test_who_has_stopped_takes_no_further_request(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    hang(crew, channel)

    crew.stop()
    channel.waiting.put(2)
    session.go.set()
    until(lambda: not crew.size())

    assert channel.waiting.get_nowait() == 2


@pytest.mark.logs(f"no more threads than {_KEPT} can be had")
@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), OSError(12, "memory")])
def test_a_machine_without_more_threads_is_served_with_those_there_are(
    session: Hanging,
    channel: Queued,
    crew: Crew,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def refused(*_: object) -> None:
        raise error

    for count in range(1, _KEPT + 1):
        hang(crew, channel, 2 * count + 1)
        if count < _KEPT:
            crew.about_to_block()
    with monkeypatch.context() as patched:
        if isinstance(error, OSError):
            patched.setattr(channel, "open_request", refused)
        else:
            patched.setattr(_thread, "start_new_thread", refused)
        crew.about_to_block()
        crew.about_to_block()
        assert crew.size() == _KEPT
    channel.waiting.put(2)
    look_until(crew, lambda: session.begun.qsize() == _KEPT + 1)

    assert session.done.get() == 2


def test_beside_rings_it_grows_only_when_something_hangs(session: Hanging, channel: Queued) -> None:
    """Nothing would wake one too many, so that it leaves."""
    crew = Crew(cast("Session", session), channel, _nothing, beside_rings=True)
    crew.start()
    session.about_to_block()
    assert crew.size() == 1

    hang(crew, channel)
    session.about_to_block()
    assert crew.size() == 1
    channel.waiting.put(2)
    look_until(crew, lambda: bool(session.done.qsize()))

    assert session.done.get() == 2
    session.go.set()
    channel.waiting.put(None)
    until(lambda: not crew.size())


def test_a_forget_that_hangs_holds_up_nobody_else(
    session: Hanging, channel: Queued, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "_LONGEST_FORGET_LOOKS", 20)
    channel.kinds[1] = Opcode.BATCH_FORGET
    hang(crew, channel)
    channel.waiting.put(2)

    for _ in range(10):
        crew.look()
    assert crew.size() == 1
    look_until(crew, lambda: bool(session.done.qsize()))

    assert session.done.get() == 2


@pytest.mark.logs("no more threads than 0 can be had")
def test_without_any_thread_there_is_nothing_to_serve_with(
    session: Hanging, channel: Queued, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(_thread, "start_new_thread", refused)

    with pytest.raises(BlockingIOError):
        Crew(cast("Session", session), channel, _nothing).start()


@pytest.mark.logs("the connection to the kernel is broken")
def test_a_thread_that_is_lost_ends_the_session(woken: threading.Event, channel: Queued) -> None:
    """Its request would wait for ever, and with the last one so would everybody's."""

    class Mistaken(Hanging):
        def answer(self, request: Request, _channel: object) -> None:
            raise LookupError(request.unique)

    crew = Crew(cast("Session", Mistaken(channel)), channel, woken.set)
    crew.start()
    channel.waiting.put(1)

    assert woken.wait(LIMIT_S)
    assert crew.ended
    assert isinstance(crew.error, LookupError)
    until(lambda: not crew.size())


@pytest.mark.logs("the connection to the kernel is broken")
def test_a_broken_transport_ends_the_session(session: Hanging, woken: threading.Event) -> None:
    class Broken(Queued):
        def receive(self, request: Request) -> bool:
            raise OSError(5, "broken", request.length)

    crew = Crew(cast("Session", session), Broken(), woken.set)
    crew.start()

    assert woken.wait(LIMIT_S)
    assert crew.ended
    assert crew.error is not None
    until(lambda: not crew.size())
