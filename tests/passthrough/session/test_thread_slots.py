"""Samples of thread slots: whether the host or this process delays the threads."""

import resource
import time
from types import SimpleNamespace
from typing import cast

import pytest

from passthrough.session import thread_slots
from passthrough.session.abi import Opcode
from passthrough.session.request import Request
from passthrough.session.thread_slots import (
    SAMPLE_INTERVAL_S,
    UNRELIABLE_SAMPLES,
    Sampler,
    ThreadSlot,
    another_serves,
    count_new_requests,
)


class Machine:
    """A fake clock with fake resource usage of this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.usage = SimpleNamespace(ru_utime=0.0, ru_stime=0.0, ru_nivcsw=0)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(resource, "getrusage", lambda _who: self.usage)

    def passes(
        self, seconds: float = SAMPLE_INTERVAL_S, computed: float = 0.0, preemptions: int = 0
    ) -> None:
        self.now += seconds
        self.usage.ru_utime += computed / 2
        self.usage.ru_stime += computed / 2
        self.usage.ru_nivcsw += preemptions


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def sampler(machine: Machine) -> Sampler:
    begun = Sampler()
    begun.sample()
    machine.passes()
    begun.sample()
    return begun


def test_a_process_that_computes_is_busy(machine: Machine, sampler: Sampler) -> None:
    assert (sampler.busy, sampler.unreliable) == (False, False)

    machine.passes(computed=0.9 * SAMPLE_INTERVAL_S)
    sampler.sample()
    assert sampler.busy

    machine.passes(computed=0.1 * SAMPLE_INTERVAL_S)
    sampler.sample()
    assert not sampler.busy


def test_a_late_sample_is_unreliable(machine: Machine, sampler: Sampler) -> None:
    machine.passes(3 * SAMPLE_INTERVAL_S)
    sampler.sample()
    assert sampler.unreliable

    machine.passes()
    sampler.sample()
    assert not sampler.unreliable


def test_samples_after_a_preemption_are_unreliable(machine: Machine, sampler: Sampler) -> None:
    machine.passes(preemptions=1)
    unreliable = []
    for _ in range(UNRELIABLE_SAMPLES + 1):
        sampler.sample()
        unreliable.append(sampler.unreliable)
        machine.passes()
    assert unreliable == [True] * UNRELIABLE_SAMPLES + [False]


def test_many_requests_in_an_interval_mean_a_fast_host(machine: Machine, sampler: Sampler) -> None:
    limit = thread_slots._FAST_HOST_REQUESTS
    assert not sampler.is_fast(limit, 1)
    assert sampler.is_fast(limit + 1, 1)
    assert not sampler.is_fast(limit + 1, 2)
    assert not sampler.is_fast(0, 0)

    machine.passes(4 * SAMPLE_INTERVAL_S)
    sampler.sample()
    assert not sampler.is_fast(4 * limit, 1)
    assert sampler.is_fast(4 * limit + 1, 1)


def test_each_request_is_counted_once() -> None:
    both = [ThreadSlot(cast("Request", None)) for _ in range(2)]
    assert count_new_requests(both) == 0
    both[0].taken += 3
    both[1].taken += 1
    assert count_new_requests(both) == 4
    both[1].taken += 1
    assert count_new_requests(both) == 1
    assert count_new_requests(both) == 0


@pytest.mark.parametrize(
    ("opcode", "idle", "serves"),
    [
        (Opcode.SETLKW, False, False),
        (Opcode.SETLK, False, False),  # it may wait for pages that other threads read
        (Opcode.SETLKW, True, True),
        (Opcode.FSYNC, False, True),
    ],
)
def test_a_thread_that_may_wait_for_a_lock_does_not_serve(
    opcode: Opcode, *, idle: bool, serves: bool
) -> None:
    own, other = (ThreadSlot(cast("Request", SimpleNamespace(opcode=opcode))) for _ in range(2))
    own.idle, other.idle = False, idle

    assert another_serves([own, other], own.request) is serves
    assert not another_serves([own], own.request)
