"""What the main thread can tell by looking: how fast threads are, and whose fault it is."""

import resource
import time
from types import SimpleNamespace
from typing import cast

import pytest

from passthrough.session import thread_slots
from passthrough.session.abi import Opcode
from passthrough.session.request import Request
from passthrough.session.thread_slots import (
    LATE_LOOKS,
    LOOK_S,
    Interval,
    Member,
    another_serves,
    taken,
)


class Machine:
    """A clock, and what the system says of this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.usage = SimpleNamespace(ru_utime=0.0, ru_stime=0.0, ru_nivcsw=0)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(resource, "getrusage", lambda _who: self.usage)

    def passes(self, seconds: float = LOOK_S, computed: float = 0.0, interrupted: int = 0) -> None:
        self.now += seconds
        self.usage.ru_utime += computed / 2
        self.usage.ru_stime += computed / 2
        self.usage.ru_nivcsw += interrupted


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def interval(machine: Machine) -> Interval:
    begun = Interval()
    begun.end()
    machine.passes()
    begun.end()
    return begun


def test_who_computes_is_not_held_up(machine: Machine, interval: Interval) -> None:
    assert (interval.busy, interval.late) == (False, False)

    machine.passes(computed=0.9 * LOOK_S)
    interval.end()
    assert interval.busy

    machine.passes(computed=0.1 * LOOK_S)
    interval.end()
    assert not interval.busy


def test_a_look_that_comes_late_says_little(machine: Machine, interval: Interval) -> None:
    machine.passes(3 * LOOK_S)
    interval.end()
    assert interval.late

    machine.passes()
    interval.end()
    assert not interval.late


def test_who_had_to_give_way_may_be_waiting_for_a_while(
    machine: Machine, interval: Interval
) -> None:
    machine.passes(interrupted=1)
    late = []
    for _ in range(LATE_LOOKS + 1):
        interval.end()
        late.append(interval.late)
        machine.passes()
    assert late == [True] * LATE_LOOKS + [False]


def test_many_requests_are_not_those_of_a_slow_host(machine: Machine, interval: Interval) -> None:
    most = thread_slots._FAST
    assert not interval.fast(most, 1)
    assert interval.fast(most + 1, 1)
    assert not interval.fast(most + 1, 2)
    assert not interval.fast(0, 0)

    machine.passes(4 * LOOK_S)
    interval.end()
    assert not interval.fast(4 * most, 1)
    assert interval.fast(4 * most + 1, 1)


def test_each_request_is_counted_once() -> None:
    both = [Member(cast("Request", None)) for _ in range(2)]
    assert taken(both) == 0
    both[0].count += 3
    both[1].count += 1
    assert taken(both) == 4
    both[1].count += 1
    assert taken(both) == 1
    assert taken(both) == 0


@pytest.mark.parametrize(
    ("opcode", "waits", "serves"),
    [
        (Opcode.SETLKW, False, False),
        (Opcode.SETLK, False, False),  # it may have pages dropped that others read
        (Opcode.SETLKW, True, True),
        (Opcode.FSYNC, False, True),
    ],
)
def test_a_thread_that_may_wait_for_a_lock_does_not_serve(
    opcode: Opcode, *, waits: bool, serves: bool
) -> None:
    own, other = (Member(cast("Request", SimpleNamespace(opcode=opcode))) for _ in range(2))
    own.waits, other.waits = False, waits

    assert another_serves([own, other], own.request) is serves
    assert not another_serves([own], own.request)
