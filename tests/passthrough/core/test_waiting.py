"""Calls that wait, and how they are called back."""

import errno
import os
import select
import signal
import threading
from collections.abc import Callable

import pytest

from passthrough.core import waiting
from passthrough.core.waiting import Wait, Waits
from tests.support.tools.direct import fails

PATIENCE_S = 20.0


class Waiter(threading.Thread):
    """A thread that makes one call, and keeps the errno with which it ended, 0 for none."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call
        self.result: int | None = None
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except OSError as error:
            self.result = error.errno
        else:
            self.result = 0

    def ended(self) -> int | None:
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self.result


def once(fd: int) -> None:
    """Wait until *fd* can be read, for as long as no signal comes, poll(2)."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    os.sched_yield()
    if not poll.poll(1):
        raise InterruptedError(errno.EINTR, "as if by a signal")


def test_a_call_that_needs_no_waiting_is_made_once() -> None:
    calls: list[int] = []

    with Waits().waiting(7) as wait:
        wait.run(lambda: calls.append(1))

    assert calls == [1]


def test_the_calls_own_error_is_passed_on() -> None:
    def deadlock() -> None:
        raise OSError(errno.EDEADLK, "of the call's own")

    fails(errno.EDEADLK, lambda: Wait().run(deadlock))


def test_a_signal_for_others_does_not_end_a_wait() -> None:
    """The process's own signals may come to any thread."""
    tries: list[int] = []

    def interrupted_twice() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise InterruptedError(errno.EINTR, "as if by a signal")

    Wait().run(interrupted_twice)

    assert len(tries) == 3


def test_who_waits_is_called_back() -> None:
    waits = Waits()
    silent_fd, writing_fd = os.pipe()

    def wait_for_nothing() -> None:
        with waits.waiting(7) as wait:
            entered.set()
            wait.run(lambda: once(silent_fd))

    entered = threading.Event()
    waiter = Waiter(wait_for_nothing)
    assert entered.wait(PATIENCE_S)
    waits.call_back(6)
    assert waiter.result is None
    waits.call_back(7)

    assert waiter.ended() == errno.EINTR
    assert len(waits) == 0
    os.close(silent_fd)
    os.close(writing_fd)


def test_who_is_called_back_before_it_waits_does_not_begin() -> None:
    """The two requests may be taken by two threads, of which the second is faster."""
    waits = Waits()
    waits.call_back(7)

    with pytest.raises(InterruptedError), waits.waiting(7):
        pytest.fail("it waits")
    with waits.waiting(7) as wait:
        wait.run(lambda: None)


def test_calls_back_of_what_never_waits_are_not_kept_for_ever() -> None:
    waits = Waits()
    for number in range(10_000):
        waits.call_back(number)

    assert len(waits._early) == waiting._EARLY


def test_no_more_than_a_certain_number_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_MOST", 1)
    waits = Waits()

    with waits.waiting(1):
        fails(errno.ENOLCK, lambda: waits.waiting(2).__enter__())
        assert len(waits) == 1


def test_a_call_back_leaves_the_thread_alone_afterwards() -> None:
    """No signal is sent to a thread that has left: what it does next is its own."""
    sent: list[int] = []
    wait = Wait()
    wait.run(lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "pthread_kill", lambda thread, _: sent.append(thread))
        wait.call_back()

    assert sent == []
