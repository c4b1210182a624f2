"""Polling for the next request: when it is on, and for how long a thread polls."""

import os
import time
from collections.abc import Iterator

import pytest

from tests.passthrough.native.probe_polling import (
    LOAD,
    MAX_VALIDITY,
    SAMPLES,
    VALIDITY,
    Probe,
    pays_beside,
)

# Requests in a trial of 20 ms, and the processor time of the process.
Work = tuple[int, float]
FEW: Work = (LOAD - 1, 0.001)
SLOW: Work = (400, 0.008)
FAST: Work = (800, 0.016)
TRIALS = round(VALIDITY / 0.02)


@pytest.fixture
def polling() -> Probe:
    return Probe()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def judged(polling: Probe, *trials: Work) -> list[bool]:
    """Return whether polling is on after each of *trials*."""
    return [polling.judge(*trial) for trial in trials]


def stays(polling: Probe, state: bool, seconds: float) -> bool:
    """Return whether polling keeps its *state* under load for about so many *seconds*."""
    trials = round(seconds / 0.02) - 1
    return judged(polling, *[FAST] * trials) == [state] * trials


@pytest.mark.parametrize(
    ("trial", "pays"),
    [
        ((800, 0.02, 0.016), True),
        ((400, 0.02, 0.008), False),
        ((440, 0.02, 0.008), False),  # the speedup may be chance
        ((800, 0.04, 0.016), False),  # as many requests a second
        ((600, 0.02, 0.0179), True),  # 1.5 times as fast, for 1.49 times the processor time
        ((600, 0.02, 0.0181), False),
        ((200, 0.02, 0.004), False),
    ],
)
def test_polling_pays_if_the_speedup_exceeds_the_cost(
    trial: tuple[int, float, float], pays: bool
) -> None:
    assert pays_beside(trial, (400, 0.02, 0.008)) is pays


def test_polling_starts_under_load_and_ends_with_it(polling: Probe) -> None:
    assert judged(polling, FEW, FEW, SLOW, FAST, SLOW, FAST, FAST, FEW) == [
        *(False, False, True, False, True, True, True, False)
    ]
    assert judged(polling, SLOW) == [True]  # what has paid is tried again at once


def test_polling_that_paid_stays_on_until_the_next_trial(polling: Probe) -> None:
    assert judged(polling, SLOW, FAST, SLOW, FAST) == [True, False, True, True]
    assert stays(polling, True, VALIDITY)

    assert judged(polling, *[FAST] * 5)[-2:] == [False, False]  # polling no longer pays


def test_polling_must_pay_twice_in_a_row(polling: Probe) -> None:
    assert judged(polling, SLOW, FAST, SLOW, SLOW, SLOW) == [True, False, True, False, False]


def test_polling_that_did_not_pay_stays_off_twice_as_long(polling: Probe) -> None:
    validity = VALIDITY
    while validity < MAX_VALIDITY:
        validity *= 2
        while not polling.judge(*FAST):
            pass
        assert judged(polling, SLOW) == [False]
        assert stays(polling, False, validity)

    while not polling.judge(*FAST):
        pass
    assert judged(polling, SLOW) == [False]
    assert stays(polling, False, MAX_VALIDITY)
    assert any(judged(polling, *[FAST] * 3))


def test_polling_that_nearly_ended_the_load_stays_off(polling: Probe) -> None:
    assert judged(polling, SLOW, FEW) == [True, False]

    assert stays(polling, False, VALIDITY)


def test_a_trial_ends_if_the_thread_loses_its_processor(polling: Probe) -> None:
    assert judged(polling, SLOW) == [True]

    polling.lose_processor()

    assert judged(polling, FEW) == [False]
    assert stays(polling, False, 2 * VALIDITY)


def test_polling_that_paid_stops_if_the_thread_loses_its_processor(polling: Probe) -> None:
    assert judged(polling, SLOW, FAST, SLOW, FAST, FAST) == [True, False, True, True, True]

    polling.lose_processor()

    assert stays(polling, False, VALIDITY - 0.02)
    assert True in judged(polling, *[SLOW] * 3)


def run_trial(polling: Probe) -> bool:
    """Sample for the length of a trial under load."""
    return [polling.sample(100, 0.001) for _ in range(SAMPLES)][-1]


def test_samples_make_trials(polling: Probe) -> None:
    polling.sample(100, 0.001)  # a trial starts at the end of a sample

    assert run_trial(polling)


def test_a_trial_does_not_outlast_a_time_without_samples(polling: Probe) -> None:
    polling.sample(100, 0.001)
    assert run_trial(polling)

    polling.interrupt()

    assert not polling.on
    polling.sample(100, 0.001)
    assert run_trial(polling)


def test_polling_that_paid_outlasts_a_time_without_samples(polling: Probe) -> None:
    judged(polling, SLOW, FAST, SLOW, FAST)

    polling.interrupt()

    assert polling.on


def test_wait_returns_if_there_is_a_request(polling: Probe, pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"a request")
    start = time.thread_time_ns()

    for _ in range(1000):
        polling.wait(pipe[0])

    assert time.thread_time_ns() - start < 1000 * 20_000


def test_wait_ends(polling: Probe, pipe: tuple[int, int]) -> None:
    start = time.thread_time_ns()

    polling.wait(pipe[0])

    assert time.thread_time_ns() - start < 50_000_000


def test_only_one_thread_polls(polling: Probe, pipe: tuple[int, int]) -> None:
    start = time.thread_time_ns()

    for _ in range(1000):
        polling.wait(pipe[0], beside=True)

    assert time.thread_time_ns() - start < 1000 * 20_000


def test_a_closed_descriptor_ends_the_wait(polling: Probe, pipe: tuple[int, int]) -> None:
    closed = os.dup(pipe[0])
    os.close(closed)
    start = time.thread_time_ns()

    for _ in range(1000):
        polling.wait(closed)

    assert time.thread_time_ns() - start < 1000 * 20_000
