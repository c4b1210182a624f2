"""The threads: who serves when callers hang, who leaves, and how all of them stop."""

import contextlib
import mmap
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import pytest

from passthrough.session import abi
from passthrough.session.abi import Opcode
from passthrough.session.crew import _SPARE, Crew
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


class Hanging:
    """A session whose odd requests wait until they are let go."""

    def __init__(self) -> None:
        self.begun: queue.Queue[int] = queue.Queue()
        self.done: queue.Queue[int] = queue.Queue()
        self.go = threading.Event()

    def answer(self, request: Request) -> None:
        request.decode()
        unique = request.unique
        self.begun.put(unique)
        if unique % 2:
            assert self.go.wait(LIMIT_S)
        self.done.put(unique)


@contextlib.contextmanager
def crew_of(session: Hanging, channel: Queued) -> Iterator[tuple[Crew, threading.Event]]:
    ended = threading.Event()
    crew = Crew(cast("Session", session), channel, ended.set)
    crew.start()
    yield crew, ended
    session.go.set()
    channel.requests.put(None)
    until(lambda: not crew._members)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does; the test's own limit ends a wait in vain."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


@pytest.fixture
def session() -> Hanging:
    return Hanging()


@pytest.fixture
def channel() -> Queued:
    return Queued()


def test_callers_that_hang_hold_up_nobody_else(session: Hanging, channel: Queued) -> None:
    with crew_of(session, channel) as (crew, _):
        for unique in range(1, 101, 2):
            channel.requests.put(unique)
        channel.requests.put(2)

        assert session.done.get(timeout=LIMIT_S) == 2
        until(lambda: session.begun.qsize() == 51)
        until(lambda: crew.at_work() == 50)


def test_those_who_are_not_needed_any_more_leave(session: Hanging, channel: Queued) -> None:
    with crew_of(session, channel) as (crew, _):
        for unique in range(1, 41, 2):
            channel.requests.put(unique)
        until(lambda: crew.at_work() == 20)
        assert len(crew._members) >= 20

        session.go.set()

        until(lambda: session.done.qsize() == 20)
        until(lambda: crew.at_work() == 0)
        until(lambda: 1 <= len(crew._members) <= _SPARE + 1)
        channel.requests.put(2)
        until(lambda: session.done.qsize() == 21)


def test_the_end_is_told_once(session: Hanging, channel: Queued) -> None:
    with crew_of(session, channel) as (crew, ended):
        channel.requests.put(None)

        assert ended.wait(LIMIT_S)
        assert crew.ended
        assert crew.error is None


def test_who_has_stopped_touches_nothing_any_more(session: Hanging, channel: Queued) -> None:
    with crew_of(session, channel) as (crew, ended):
        channel.requests.put(1)
        until(lambda: crew.at_work() == 1)

        crew.stop()
        channel.requests.put(2)
        until(channel.requests.empty)
        session.go.set()
        until(lambda: crew.at_work() == 0)

        assert session.done.get(timeout=LIMIT_S) == 1
        assert session.begun.qsize() == 1
        assert not ended.is_set()


@pytest.mark.logs("the connection to the kernel is broken")
def test_a_broken_transport_ends_the_session(session: Hanging) -> None:
    class Broken(Queued):
        def receive(self, request: Request) -> bool:
            raise OSError(5, "broken", request.length)

    channel = Broken()
    with crew_of(session, channel) as (crew, ended):
        assert ended.wait(LIMIT_S)
        assert crew.error is not None
