"""When it is worth to ask for the next request before sleeping, and how long."""

import os
import socket
import time

import pytest

from passthrough.session.polling import _BELIEVED, _LOOKS, Polling, Trial

FEW = Trial(39, 0.02, 0.001)
SLOW = Trial(400, 0.02, 0.008)
FAST = Trial(800, 0.02, 0.016)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def polling(pair: Pair) -> Polling:
    return Polling(pair[0].fileno())


def told(polling: Polling, *trials: Trial) -> list[bool]:
    """Whether it is on after each of *trials*."""
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
        (Trial(440, 0.02, 0.008), False),  # which may be chance
        (Trial(800, 0.04, 0.016), False),  # as many a second
        (Trial(600, 0.02, 0.0179), True),  # half as fast again, half as dear again less a bit
        (Trial(600, 0.02, 0.0181), False),
        (Trial(200, 0.02, 0.004), False),
    ],
)
def test_it_pays_to_be_faster_by_more_than_dearer(trial: Trial, pays: bool) -> None:
    assert trial.pays(SLOW) is pays


def test_it_starts_only_under_load_and_ends_with_it(polling: Polling) -> None:
    assert told(polling, FEW, FEW, SLOW, FAST, SLOW, FAST, FAST, FEW) == [
        *(False, False, True, False, True, True, True, False)
    ]


def test_what_paid_is_kept_until_it_is_tried_anew(polling: Polling) -> None:
    assert told(polling, SLOW, FAST, SLOW, FAST) == [True, False, True, True]

    assert told(polling, *[FAST] * _BELIEVED) == [True] * (_BELIEVED - 1) + [False]
    assert told(polling, FAST, FAST) == [True, False]  # without it, it is as good by now


def test_once_may_be_chance(polling: Polling) -> None:
    assert told(polling, SLOW, FAST, SLOW, SLOW, SLOW) == [True, False, True, False, False]


def test_what_did_not_pay_is_left_alone_until_then(polling: Polling) -> None:
    assert told(polling, FAST, SLOW) == [True, False]

    assert told(polling, *[FAST] * 2 * _BELIEVED) == [False] * 2 * _BELIEVED
    assert told(polling, FAST, SLOW) == [True, False]
    assert told(polling, *[FAST] * 4 * _BELIEVED) == [False] * 4 * _BELIEVED
    assert told(polling, SLOW, FAST, SLOW, FAST) == [True, False, True, True]


def giving_way_takes(nanoseconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have time pass while somebody gives way, and at no other moment."""
    given_way: list[None] = []
    monkeypatch.setattr(os, "sched_yield", lambda: given_way.append(None))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: len(given_way) * nanoseconds)


def test_who_gave_a_processor_away_asks_no_more(
    polling: Polling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time costs everybody milliseconds where another program computes."""
    giving_way_takes(2_000_000, monkeypatch)
    assert told(polling, SLOW) == [True]

    polling.wait()

    assert not polling.on
    assert told(polling, FEW, *[SLOW] * _BELIEVED) == [False] * (1 + _BELIEVED)
    assert told(polling, SLOW) == [True]


def test_also_where_it_had_paid(polling: Polling, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(polling, SLOW, FAST, SLOW, FAST, FAST) == [True, False, True, True, True]
    giving_way_takes(2_000_000, monkeypatch)

    polling.wait()

    assert not polling.on
    left = _BELIEVED - 1
    assert told(polling, *[FAST] * left) == [False] * left
    assert told(polling, SLOW, FAST, SLOW, FAST) == [True, False, True, True]


def test_to_give_way_to_nobody_changes_nothing(
    polling: Polling, monkeypatch: pytest.MonkeyPatch
) -> None:
    giving_way_takes(1_000, monkeypatch)
    assert told(polling, SLOW) == [True]

    polling.wait()

    assert told(polling, FAST, SLOW, FAST) == [False, True, True]


def looked(polling: Polling) -> None:
    """Have the main thread look for the length of a trial in which there is a load."""
    for _ in range(_LOOKS):
        assert not polling.on
        polling.received += 100
        polling.look()


def test_looks_make_trials(polling: Polling) -> None:
    looked(polling)  # from where the first trial is counted
    looked(polling)

    assert polling.on


def test_after_a_rest_everything_begins_anew(polling: Polling) -> None:
    looked(polling)
    looked(polling)

    polling.rest()

    looked(polling)
    looked(polling)
    assert polling.on


def test_a_request_that_is_there_is_found(pair: Pair, polling: Polling) -> None:
    ours, theirs = pair
    theirs.send(b"a request")

    polling.wait()

    assert ours.recv(100) == b"a request"


def test_asking_has_an_end_and_one_thread_does_it(polling: Polling) -> None:
    start = time.thread_time_ns()
    with polling._turn:
        polling.wait()
    assert not polling._turn.locked()

    polling.wait()

    assert time.thread_time_ns() - start < 50_000_000
    assert not polling._turn.locked()


def test_a_closed_descriptor_ends_it(pair: Pair, polling: Polling) -> None:
    pair[0].close()

    polling.wait()

    assert not polling._turn.locked()
