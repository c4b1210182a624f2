"""The thread pool: how it grows when callers hang, shrinks, and stops."""

import _thread
import mmap
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import cast
from unittest.mock import Mock

import pytest

from passthrough.session import abi, thread_pool
from passthrough.session.abi import Opcode
from passthrough.session.request import Request
from passthrough.session.session import Session
from passthrough.session.thread_pool import _KEPT_SLOTS, _MAX_PARKED, _SHRINK_SAMPLES, ThreadPool
from passthrough.session.thread_slots import (
    _LONGEST_WAIT_S,
    IDLE_SAMPLES,
    SAMPLE_INTERVAL_S,
    SLOW_HOST_SAMPLES,
)
from passthrough.session.wire import FIXED
from tests.support.fakes.channel import START, FakeChannel
from tests.support.fakes.kernel import message

LIMIT_S = 20.0
WAKE_UP = 1_000_000


class Queued(FakeChannel):
    """A channel that brings the requests that a test puts; None ends the connection."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: queue.Queue[int | None] = queue.Queue()
        self.kinds = {WAKE_UP: Opcode.NOTIFY_REPLY}
        self.buffers = 0
        self.idles = 0

    def idle(self) -> None:
        self.idles += 1

    def open_request(self) -> Request:
        self.buffers += 1
        return Request(mmap.mmap(-1, 4096), START)

    def receive(self, request: Request) -> bool:
        unique = self.waiting.get()
        if unique is None:
            self.waiting.put(None)  # for the other threads, which get ENODEV as well
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
    """A session in which requests with an odd number hang until `go` is set."""

    def waiting(self) -> int:
        return 0

    def idle(self) -> None:
        self.idles += 1

    def wake_readers(self, count: int) -> bool:
        for _ in range(count if self.knows_a_file else 0):
            self._channel.waiting.put(WAKE_UP)
        return self.knows_a_file

    def __init__(self, channel: Queued) -> None:
        self._channel = channel
        self.knows_a_file = True
        self.idles = 0
        self.begun: queue.Queue[int] = queue.Queue()
        self.done: queue.Queue[int] = queue.Queue()
        self.go = threading.Event()
        self.about_to_block: Callable[[], None] = _nothing

    def answer(self, request: Request, _channel: object) -> None:
        request.decode()
        unique = request.unique
        if unique == WAKE_UP:
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
def pool(session: Hanging, channel: Queued, woken: threading.Event) -> Iterator[ThreadPool]:
    pool = ThreadPool(cast("Session", session), channel, woken.set)
    pool.start()
    yield pool
    session.go.set()
    channel.waiting.put(None)
    until(lambda: not pool.size())
    pool.stop()  # ends the parked threads


def until(condition: Callable[[], bool]) -> None:
    """Wait for *condition*, which another thread brings about; the test's time limit applies."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


def sample_until(pool: ThreadPool, condition: Callable[[], bool]) -> None:
    """Sample the pool, as the main thread does, until *condition*."""

    def sampled() -> bool:
        pool.sample()
        return condition()

    until(sampled)


def hang(pool: ThreadPool, channel: Queued, unique: int = 1) -> None:
    """Have one more thread serve a request, which hangs until `go` is set."""
    wanted = pool.in_flight() + 1
    channel.waiting.put(unique)
    until(lambda: pool.in_flight() == wanted)


def test_one_thread_serves_while_no_request_hangs(
    session: Hanging, channel: Queued, pool: ThreadPool
) -> None:
    for unique in range(0, 200, 2):
        channel.waiting.put(unique)

    sample_until(pool, lambda: session.done.qsize() == 100)

    assert pool.size() <= 2  # two if the machine is as slow as a blocked host


def test_hanging_callers_do_not_delay_others(
    session: Hanging, channel: Queued, pool: ThreadPool
) -> None:
    for unique in range(1, 101, 2):
        channel.waiting.put(unique)
    channel.waiting.put(2)

    sample_until(pool, lambda: session.begun.qsize() == 51)

    assert session.done.get(timeout=LIMIT_S) == 2
    until(lambda: pool.in_flight() == 50)


def test_a_thread_about_to_block_adds_a_thread_at_once(
    session: Hanging, channel: Queued, pool: ThreadPool
) -> None:
    hang(pool, channel)

    session.about_to_block()
    channel.waiting.put(2)

    assert session.done.get(timeout=LIMIT_S) == 2


def test_let_others_finish_waits_for_requests_in_flight(
    session: Hanging, channel: Queued, pool: ThreadPool
) -> None:
    mine = channel.open_request()
    assert not pool.let_others_finish(mine)  # there is no other thread
    hang(pool, channel)
    pool.about_to_block()
    begun = time.monotonic()
    assert pool.let_others_finish(mine)  # the request hangs longer than the limit
    assert time.monotonic() - begun >= _LONGEST_WAIT_S
    timer = threading.Timer(0.001, session.go.set)
    timer.start()

    while session.done.empty():
        pool.let_others_finish(mine)

    timer.join()
    until(lambda: pool.size() == 1)
    assert not pool.let_others_finish(mine)  # the other thread has left


def test_let_others_finish_adds_a_thread(
    session: Hanging, channel: Queued, pool: ThreadPool
) -> None:
    hang(pool, channel, 1)
    pool.about_to_block()
    hang(pool, channel, 3)
    assert pool.size() == 2
    channel.waiting.put(2)

    assert pool.let_others_finish(channel.open_request())

    assert session.done.get(timeout=LIMIT_S) == 2


def test_surplus_threads_leave_after_their_next_request(
    session: Hanging, channel: Queued, pool: ThreadPool
) -> None:
    for unique in range(1, 41, 2):
        channel.waiting.put(unique)
    sample_until(pool, lambda: pool.in_flight() == 20)
    session.go.set()
    until(lambda: pool.in_flight() == 0)
    assert pool.size() >= 20

    for _ in range(_SHRINK_SAMPLES + IDLE_SAMPLES):
        pool.sample()
    for unique in range(0, 200, 2):
        channel.waiting.put(unique)

    until(lambda: pool.size() == 1)
    until(lambda: session.done.qsize() == 120)


def test_surplus_threads_leave_without_further_requests(
    session: Hanging, channel: Queued, pool: ThreadPool
) -> None:
    for unique in range(1, 41, 2):
        channel.waiting.put(unique)
    sample_until(pool, lambda: pool.in_flight() == 20)
    session.go.set()

    sample_until(pool, lambda: pool.size() == 1)

    sample_until(pool, lambda: pool.idle)
    assert session.done.qsize() == 20


def test_sampling_stops_with_surplus_threads_that_cannot_be_woken(
    session: Hanging, channel: Queued, pool: ThreadPool
) -> None:
    session.knows_a_file = False
    channel.waiting.put(1)
    sample_until(pool, lambda: pool.size() > 1)
    size = pool.size()
    session.go.set()

    sample_until(pool, lambda: pool.idle)

    assert pool.size() == size


def test_one_thread_stays_idle_beside_one_that_hangs(channel: Queued, pool: ThreadPool) -> None:
    channel.waiting.put(1)
    sample_until(pool, lambda: pool.size() == 2)
    for _ in range(3 * IDLE_SAMPLES):
        pool.sample()

    assert pool.size() == 2
    assert not pool.idle


def test_a_slow_host_gets_more_threads_only_after_many_samples(
    session: Hanging, channel: Queued, pool: ThreadPool
) -> None:
    """A thread that waits for a processor shows the same for a short time."""
    samples = 0
    while pool.size() == 1:
        session.go.clear()
        channel.waiting.put(2 * samples + 1)
        until(lambda: pool.in_flight() == 1)
        time.sleep(SAMPLE_INTERVAL_S)
        pool.sample()
        samples += 1
        session.go.set()
        until(lambda: not pool.in_flight())

    assert samples > SLOW_HOST_SAMPLES
    assert pool.size() == 2


def test_a_thread_that_serves_many_requests_is_not_held_up(
    channel: Queued, pool: ThreadPool
) -> None:
    """It is busy in each sample, and computes little: other programs have the processors."""
    hang(pool, channel)
    (slot,) = pool._slots

    for _ in range(3 * SLOW_HOST_SAMPLES):
        time.sleep(SAMPLE_INTERVAL_S)
        slot.taken += 10_000
        pool.sample()

    assert pool.size() == 1


def test_a_long_forget_does_not_count_as_hanging(channel: Queued, pool: ThreadPool) -> None:
    channel.kinds[1] = Opcode.BATCH_FORGET
    hang(pool, channel)

    for _ in range(10):
        time.sleep(SAMPLE_INTERVAL_S)
        pool.sample()

    assert pool.size() == 1


def test_a_thread_that_was_blocked_parks_and_is_recalled(
    session: Hanging, channel: Queued, pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads that alternate cost twice as much as one."""
    start = Mock(wraps=_thread.start_new_thread)
    monkeypatch.setattr(_thread, "start_new_thread", start)
    for unique in range(1, 41, 2):
        session.go.clear()
        hang(pool, channel, unique)
        pool.about_to_block()
        assert pool.size() == 2
        channel.waiting.put(unique + 1)  # the added thread stays for it
        assert session.done.get(timeout=LIMIT_S) == unique + 1
        until(lambda: pool.in_flight() == 1)
        assert pool.size() == 2

        session.go.set()

        assert session.done.get(timeout=LIMIT_S) == unique
        until(lambda: pool.size() == 1)
        until(lambda: not pool.in_flight())
    start.assert_called_once()

    sample_until(pool, lambda: pool.idle)  # ends the parked threads, too

    until(lambda: len(pool._free_slots) == _KEPT_SLOTS - 1)


def test_the_number_of_parked_threads_is_limited(
    session: Hanging, channel: Queued, pool: ThreadPool
) -> None:
    waiting = _MAX_PARKED + 3
    for count in range(1, waiting + 1):
        hang(pool, channel, 2 * count + 1)
        pool.about_to_block()
    assert pool.size() == waiting + 1

    session.go.set()

    until(lambda: pool.size() == 1)
    until(lambda: session.done.qsize() == waiting)
    assert len(pool._parked) == _MAX_PARKED
    channel.waiting.put(2)
    until(lambda: session.done.qsize() == waiting + 1)


def test_parked_threads_end_with_the_session(
    session: Hanging, channel: Queued, pool: ThreadPool
) -> None:
    hang(pool, channel)
    pool.about_to_block()
    session.go.set()
    until(lambda: pool.size() == 1)
    free = len(pool._free_slots)

    pool.stop()

    until(lambda: len(pool._free_slots) == free + 1)


def test_new_threads_reuse_slots(session: Hanging, channel: Queued, pool: ThreadPool) -> None:
    for _ in range(2 * _KEPT_SLOTS):
        hang(pool, channel)
        pool.about_to_block()
        session.go.set()
        sample_until(pool, lambda: pool.size() == 1 and pool.idle)
        until(lambda: len(pool._free_slots) == _KEPT_SLOTS - 1)
        session.go.clear()

    assert channel.buffers == _KEPT_SLOTS


def test_sampling_stops_while_there_are_no_requests(
    session: Hanging, channel: Queued, pool: ThreadPool, woken: threading.Event
) -> None:
    for _ in range(IDLE_SAMPLES):
        assert not pool.idle
        pool.sample()
    assert pool.idle
    assert session.idles == channel.idles == 1
    assert not woken.is_set()

    channel.waiting.put(2)

    assert session.done.get(timeout=LIMIT_S) == 2
    assert woken.wait(LIMIT_S)
    assert not pool.idle


def test_the_end_of_the_connection_wakes_the_main_thread(
    channel: Queued, pool: ThreadPool, woken: threading.Event
) -> None:
    channel.waiting.put(None)

    assert woken.wait(LIMIT_S)
    assert pool.ended
    assert pool.error is None


def test_a_stopped_pool_does_not_serve_what_it_still_reads(
    session: Hanging, channel: Queued, pool: ThreadPool, woken: threading.Event
) -> None:
    hang(pool, channel)
    pool.about_to_block()

    pool.stop()
    channel.waiting.put(2)
    until(channel.waiting.empty)
    session.go.set()
    until(lambda: pool.in_flight() == 0)

    assert session.done.get(timeout=LIMIT_S) == 1
    assert session.begun.qsize() == 1
    assert not woken.is_set()


def test_a_stopped_pool_reads_no_further_request(
    session: Hanging, channel: Queued, pool: ThreadPool
) -> None:
    hang(pool, channel)

    pool.stop()
    channel.waiting.put(2)
    session.go.set()
    until(lambda: not pool.size())

    assert channel.waiting.get_nowait() == 2


@pytest.mark.logs(f"cannot start more than {_KEPT_SLOTS} threads")
@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), OSError(12, "memory")])
def test_the_pool_serves_on_if_no_thread_can_be_started(
    session: Hanging,
    channel: Queued,
    pool: ThreadPool,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def refused(*_: object) -> None:
        raise error

    for count in range(1, _KEPT_SLOTS + 1):
        hang(pool, channel, 2 * count + 1)
        if count < _KEPT_SLOTS:
            pool.about_to_block()
    with monkeypatch.context() as patched:
        if isinstance(error, OSError):
            patched.setattr(channel, "open_request", refused)
        else:
            patched.setattr(_thread, "start_new_thread", refused)
        pool.about_to_block()
        pool.about_to_block()
        assert pool.size() == _KEPT_SLOTS
    channel.waiting.put(2)
    sample_until(pool, lambda: session.begun.qsize() == _KEPT_SLOTS + 1)

    assert session.done.get() == 2


def test_beside_rings_the_pool_grows_only_if_a_thread_hangs(
    session: Hanging, channel: Queued
) -> None:
    """No request would wake a surplus thread, so it would never leave."""
    pool = ThreadPool(cast("Session", session), channel, _nothing, beside_rings=True)
    pool.start()
    session.about_to_block()
    assert pool.size() == 1

    hang(pool, channel)
    session.about_to_block()
    assert pool.size() == 1
    channel.waiting.put(2)
    sample_until(pool, lambda: bool(session.done.qsize()))

    assert session.done.get() == 2
    session.go.set()
    channel.waiting.put(None)
    until(lambda: not pool.size())


def test_a_forget_that_hangs_does_not_delay_others(
    session: Hanging, channel: Queued, pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_pool, "_MAX_FORGET_SAMPLES", 20)
    channel.kinds[1] = Opcode.BATCH_FORGET
    hang(pool, channel)
    channel.waiting.put(2)

    for _ in range(10):
        pool.sample()
    assert pool.size() == 1
    sample_until(pool, lambda: bool(session.done.qsize()))

    assert session.done.get() == 2


@pytest.mark.logs("cannot start more than 0 threads")
def test_start_fails_if_no_thread_can_be_started(
    session: Hanging, channel: Queued, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(_thread, "start_new_thread", refused)

    with pytest.raises(BlockingIOError):
        ThreadPool(cast("Session", session), channel, _nothing).start()


@pytest.mark.logs("the connection to the kernel is broken")
def test_an_exception_in_a_thread_ends_the_session(woken: threading.Event, channel: Queued) -> None:
    """Its request would never be answered; with the last thread gone, no request would."""

    class Mistaken(Hanging):
        def answer(self, request: Request, _channel: object) -> None:
            raise LookupError(request.unique)

    pool = ThreadPool(cast("Session", Mistaken(channel)), channel, woken.set)
    pool.start()
    channel.waiting.put(1)

    assert woken.wait(LIMIT_S)
    assert pool.ended
    assert isinstance(pool.error, LookupError)
    until(lambda: not pool.size())


@pytest.mark.logs("the connection to the kernel is broken")
def test_a_broken_transport_ends_the_session(session: Hanging, woken: threading.Event) -> None:
    class Broken(Queued):
        def receive(self, request: Request) -> bool:
            raise OSError(5, "broken", request.length)

    pool = ThreadPool(cast("Session", session), Broken(), woken.set)
    pool.start()

    assert woken.wait(LIMIT_S)
    assert pool.ended
    assert pool.error is not None
    until(lambda: not pool.size())
