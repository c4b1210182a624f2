"""The threads: who serves when callers hang, who leaves, and how all of them stop."""

import _thread
import mmap
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import pytest

from passthrough.session import abi
from passthrough.session.abi import Opcode
from passthrough.session.crew import _CALM_LOOKS, QUIET_LOOKS, Crew
from passthrough.session.request import Request
from passthrough.session.session import Session
from tests.support.kernel import START, message

LIMIT_S = 20.0


class Queued:
    """A channel whose requests come when a test puts them; None is the end."""

    def __init__(self) -> None:
        self.requests: queue.Queue[int | None] = queue.Queue()

    def open_request(self) -> Request:
        return Request(mmap.mmap(-1, 4096), START)

    def receive(self, request: Request) -> bool:
        unique = self.requests.get()
        if unique is None:
            self.requests.put(None)  # for the others, as ENODEV is
            return False
        raw = message(Opcode.GETATTR, b"\0" * 16, abi.ROOT_ID, unique)
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

    def __init__(self) -> None:
        self.begun: queue.Queue[int] = queue.Queue()
        self.done: queue.Queue[int] = queue.Queue()
        self.go = threading.Event()
        self.about_to_block: Callable[[], None] = _nothing

    def answer(self, request: Request, _channel: object) -> None:
        request.decode()
        unique = request.unique
        self.begun.put(unique)
        if unique % 2:
            assert self.go.wait(LIMIT_S)
        self.done.put(unique)


def _no_thread(*_: object) -> int:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def session() -> Hanging:
    return Hanging()


@pytest.fixture
def channel() -> Queued:
    return Queued()


@pytest.fixture
def woken() -> threading.Event:
    return threading.Event()


@pytest.fixture
def crew(session: Hanging, channel: Queued, woken: threading.Event) -> Iterator[Crew]:
    crew = Crew(cast("Session", session), channel, woken.set)
    crew.start()
    yield crew
    session.go.set()
    channel.requests.put(None)
    until(lambda: not crew.size())


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


def test_one_thread_serves_as_long_as_nothing_hangs(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    for unique in range(0, 200, 2):
        channel.requests.put(unique)

    look_until(crew, lambda: session.done.qsize() == 100)

    assert crew.size() <= 2  # a second one, should the machine be slow enough to look like the host


def test_callers_that_hang_hold_up_nobody_else(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    for unique in range(1, 101, 2):
        channel.requests.put(unique)
    channel.requests.put(2)

    look_until(crew, lambda: session.begun.qsize() == 51)

    assert session.done.get(timeout=LIMIT_S) == 2
    until(lambda: crew.at_work() == 50)


def test_who_is_about_to_wait_has_somebody_take_over_at_once(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    channel.requests.put(1)
    until(lambda: crew.at_work() == 1)

    session.about_to_block()
    channel.requests.put(2)

    assert session.done.get(timeout=LIMIT_S) == 2


def test_those_who_are_not_needed_any_more_leave_with_their_next_request(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    for unique in range(1, 41, 2):
        channel.requests.put(unique)
    look_until(crew, lambda: crew.at_work() == 20)
    session.go.set()
    until(lambda: crew.at_work() == 0)
    assert crew.size() >= 20

    for _ in range(_CALM_LOOKS + QUIET_LOOKS):
        crew.look()
    for unique in range(0, 200, 2):
        channel.requests.put(unique)

    until(lambda: crew.size() == 1)
    until(lambda: session.done.qsize() == 120)


def test_nobody_looks_while_nothing_happens(
    session: Hanging, channel: Queued, crew: Crew, woken: threading.Event
) -> None:
    for _ in range(QUIET_LOOKS):
        assert not crew.resting
        crew.look()
    assert crew.resting
    assert not woken.is_set()

    channel.requests.put(2)

    assert session.done.get(timeout=LIMIT_S) == 2
    assert woken.wait(LIMIT_S)
    assert not crew.resting


def test_the_end_is_told(channel: Queued, crew: Crew, woken: threading.Event) -> None:
    channel.requests.put(None)

    assert woken.wait(LIMIT_S)
    assert crew.ended
    assert crew.error is None


def test_who_has_stopped_touches_nothing_any_more(
    session: Hanging, channel: Queued, crew: Crew, woken: threading.Event
) -> None:
    channel.requests.put(1)
    until(lambda: crew.at_work() == 1)
    crew.about_to_block()

    crew.stop()
    channel.requests.put(2)
    until(channel.requests.empty)
    session.go.set()
    until(lambda: crew.at_work() == 0)

    assert session.done.get(timeout=LIMIT_S) == 1
    assert session.begun.qsize() == 1
    assert not woken.is_set()


def test_who_has_stopped_takes_no_further_request(
    session: Hanging, channel: Queued, crew: Crew
) -> None:
    channel.requests.put(1)
    until(lambda: crew.at_work() == 1)

    crew.stop()
    channel.requests.put(2)
    session.go.set()
    until(lambda: not crew.size())

    assert channel.requests.get_nowait() == 2


@pytest.mark.logs("no more threads than 1 can be had")
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

    with monkeypatch.context() as patched:
        if isinstance(error, OSError):
            patched.setattr(channel, "open_request", refused)
        else:
            patched.setattr(_thread, "start_new_thread", refused)
        channel.requests.put(1)
        until(lambda: crew.at_work() == 1)
        crew.about_to_block()
        crew.about_to_block()
        assert crew.size() == 1
    channel.requests.put(2)
    look_until(crew, lambda: not session.done.empty())

    assert session.done.get() == 2


@pytest.mark.logs("no more threads than 1 can be had")
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

    crew = Crew(cast("Session", Mistaken()), channel, woken.set)
    crew.start()
    channel.requests.put(1)

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
