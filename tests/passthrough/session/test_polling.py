"""Polling for the next request: when it is on, and for how long a thread polls."""

import os
import socket
import time

import pytest

from passthrough.session.polling import _SAMPLES_PER_TRIAL, _VALIDITY, Polling, Trial

FEW = Trial(39, 0.02, 0.001)
SLOW = Trial(400, 0.02, 0.008)
FAST = Trial(800, 0.02, 0.016)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def polling(pair: Pair) -> Polling:
    return Polling(pair[0].fileno())


def judged(polling: Polling, *trials: Trial) -> list[bool]:
    """Return whether polling is on after each of *trials*."""
    decided = []
    for trial in trials:
        polling.judge(trial)
        decided.append(polling.on)
    return decided


@pytest.mark.parametrize(
    ("trial", "pays"),
    [
        (Trial(800, 0.02, 0.016), True),
        (Trial(400, 0.02, 0.008), False),
        (Trial(440, 0.02, 0.008), False),  # the speedup may be chance
        (Trial(800, 0.04, 0.016), False),  # as many requests a second
        (
            Trial(600, 0.02, 0.0179),
            True,
        ),  # 1.5 times as fast, for 1.49 times the CPU time
        (Trial(600, 0.02, 0.0181), False),
        (Trial(200, 0.02, 0.004), False),
    ],
)
def test_polling_pays_if_the_speedup_exceeds_the_cost(trial: Trial, pays: bool) -> None:
    assert trial.pays(SLOW) is pays


def test_polling_starts_under_load_and_ends_with_it(polling: Polling) -> None:
    assert judged(polling, FEW, FEW, SLOW, FAST, SLOW, FAST, FAST, FEW) == [
        *(False, False, True, False, True, True, True, False)
    ]


def test_polling_that_paid_stays_on_until_the_next_trial(polling: Polling) -> None:
    assert judged(polling, SLOW, FAST, SLOW, FAST) == [True, False, True, True]

    assert judged(polling, *[FAST] * _VALIDITY) == [True] * (_VALIDITY - 1) + [False]
    assert judged(polling, FAST, FAST) == [True, False]  # polling no longer pays


def test_polling_must_pay_twice_in_a_row(polling: Polling) -> None:
    assert judged(polling, SLOW, FAST, SLOW, SLOW, SLOW) == [True, False, True, False, False]


def test_polling_that_did_not_pay_stays_off_twice_as_long(polling: Polling) -> None:
    assert judged(polling, FAST, SLOW) == [True, False]

    assert judged(polling, *[FAST] * 2 * _VALIDITY) == [False] * 2 * _VALIDITY
    assert judged(polling, FAST, SLOW) == [True, False]
    assert judged(polling, *[FAST] * 4 * _VALIDITY) == [False] * 4 * _VALIDITY
    assert judged(polling, SLOW, FAST, SLOW, FAST) == [True, False, True, True]


def yielding_takes(nanoseconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have time pass in sched_yield(2) only."""
    yields: list[None] = []
    monkeypatch.setattr(os, "sched_yield", lambda: yields.append(None))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: len(yields) * nanoseconds)


def test_polling_stops_if_sched_yield_takes_long(
    polling: Polling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program computes, and each call costs every caller milliseconds."""
    yielding_takes(2_000_000, monkeypatch)
    assert judged(polling, SLOW) == [True]

    polling.wait()

    assert not polling.on
    assert judged(polling, FEW, *[SLOW] * _VALIDITY) == [False] * (1 + _VALIDITY)
    assert judged(polling, SLOW) == [True]


def test_polling_that_paid_stops_if_sched_yield_takes_long(
    polling: Polling, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judged(polling, SLOW, FAST, SLOW, FAST, FAST) == [True, False, True, True, True]
    yielding_takes(2_000_000, monkeypatch)

    polling.wait()

    assert not polling.on
    left = _VALIDITY - 1
    assert judged(polling, *[FAST] * left) == [False] * left
    assert judged(polling, SLOW, FAST, SLOW, FAST) == [True, False, True, True]


def test_a_short_sched_yield_changes_nothing(
    polling: Polling, monkeypatch: pytest.MonkeyPatch
) -> None:
    yielding_takes(1_000, monkeypatch)
    assert judged(polling, SLOW) == [True]

    polling.wait()

    assert judged(polling, FAST, SLOW, FAST) == [False, True, True]


def run_trial(polling: Polling) -> None:
    """Sample for the length of a trial under load."""
    for _ in range(_SAMPLES_PER_TRIAL):
        assert not polling.on
        polling.received += 100
        polling.sample()


def test_samples_make_trials(polling: Polling) -> None:
    run_trial(polling)  # the first trial starts at its end
    run_trial(polling)

    assert polling.on


def test_reset_forgets_all_trials(polling: Polling) -> None:
    run_trial(polling)
    run_trial(polling)

    polling.reset()

    run_trial(polling)
    run_trial(polling)
    assert polling.on


def test_wait_returns_if_there_is_a_request(pair: Pair, polling: Polling) -> None:
    ours, theirs = pair
    theirs.send(b"a request")

    polling.wait()

    assert ours.recv(100) == b"a request"


def test_wait_ends_and_only_one_thread_polls(polling: Polling) -> None:
    start = time.thread_time_ns()
    with polling._polls:
        polling.wait()
    assert not polling._polls.locked()

    polling.wait()

    assert time.thread_time_ns() - start < 50_000_000
    assert not polling._polls.locked()


def test_a_closed_descriptor_ends_the_wait(pair: Pair, polling: Polling) -> None:
    pair[0].close()

    polling.wait()

    assert not polling._polls.locked()
