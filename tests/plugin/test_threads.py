"""threads.py: a call that hangs delays only its caller, and only until the deadline."""

import os
import threading
from collections.abc import Callable

import pytest
import trio

from plugin import threads


class Gate:
    """A blocking call that returns a new descriptor after `may_return` is set."""

    def __init__(self) -> None:
        self.may_return = threading.Event()
        self.entered = trio.Event()
        self.closed = threading.Event()
        self._token = trio.lowlevel.current_trio_token()

    def __call__(self) -> int:
        self._token.run_sync_soon(self.entered.set)
        self.may_return.wait()
        return os.open("/", os.O_PATH)

    def discard(self, fd: int) -> None:
        os.close(fd)
        self.closed.set()


async def abandon(gate: Gate, limiter: trio.CapacityLimiter) -> None:
    """Start a call, and cancel it while it hangs."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.call, gate, limiter, gate.discard)
        await gate.entered.wait()
        nursery.cancel_scope.cancel()


async def test_a_result_in_time_is_returned() -> None:
    gate = Gate()
    gate.may_return.set()
    fd = await threads.call(gate, trio.CapacityLimiter(1), gate.discard)
    os.close(fd)
    assert not gate.closed.is_set()


async def test_an_exception_of_the_function_is_raised() -> None:
    def fail() -> int:
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        await threads.call(fail, trio.CapacityLimiter(1), os.close)


async def test_a_descriptor_after_the_cancellation_is_closed() -> None:
    gate = Gate()
    await abandon(gate, trio.CapacityLimiter(1))
    gate.may_return.set()
    assert await trio.to_thread.run_sync(gate.closed.wait, 10)


async def test_a_descriptor_at_the_moment_of_the_cancellation_is_closed() -> None:
    """The function has returned, but trio delivers the cancellation first."""
    gate = Gate()
    returned = threading.Event()

    def call() -> int:
        fd = gate()
        returned.set()
        return fd

    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.call, call, trio.CapacityLimiter(1), gate.discard)
        await gate.entered.wait()
        gate.may_return.set()
        returned.wait()  # blocks trio itself, so that it cannot take the result
        nursery.cancel_scope.cancel()
    assert await trio.to_thread.run_sync(gate.closed.wait, 10)


async def test_a_later_call_waits_while_an_earlier_one_hangs(
    autojump_clock: Callable[[], None],
) -> None:
    """So a dead source costs one thread, however many requests need it."""
    del autojump_clock
    gate, limiter = Gate(), trio.CapacityLimiter(1)
    await abandon(gate, limiter)
    second = Gate()
    with trio.move_on_after(5) as scope:
        await threads.call(second, limiter, second.discard)
    assert scope.cancelled_caught
    assert not second.entered.is_set()
    gate.may_return.set()
    assert gate.closed.wait(10)
