import math
import signal

import pytest

from passthrough.worker import control
from passthrough.worker.backoff import wait_after
from passthrough.worker.control import Death


def deaths(status: int, *boot_s: float) -> list[Death]:
    return [Death(1.5e9 + at, at, 100, status, 0, 0) for at in boot_s]


def waits(status: int, life_s: float, count: int) -> list[float]:
    """Return the waits of a worker that dies again and again after *life_s*."""
    found: list[float] = []
    recent: list[Death] = []
    at = wait_s = 0.0
    for _ in range(count):
        at += wait_s + life_s
        recent += deaths(status, at)
        wait_s = wait_after(recent[-1], recent[-control.RECENT :], life_s, wait_s)
        found.append(wait_s)
        if wait_s == math.inf:
            break
    return found


def test_a_crash_loop_is_slowed_down_and_given_up() -> None:
    assert waits(signal.SIGSEGV, 0.01, 20) == [0, 0.05, 0.1, 0.2, 0.4, 0.8, 1, 1, 1, math.inf]


def test_an_exit_by_a_failed_switch_and_an_unknown_status_are_own_deaths() -> None:
    for status in (77 << 8, control.STATUS_UNKNOWN):
        assert waits(status, 0.01, 20)[-1] == math.inf


def test_rare_crashes_wait_for_nothing() -> None:
    assert waits(signal.SIGSEGV, 7.0, 50) == [0] * 50


@pytest.mark.parametrize("status", [signal.SIGKILL, signal.SIGTERM])
def test_deaths_from_outside_are_never_given_up(status: int) -> None:
    assert waits(status, 5.0, 40) == [0] * 40
    assert waits(status, 0.05, 40) == [0.02] * 40


def test_deaths_from_outside_do_not_count_as_crashes() -> None:
    recent = deaths(signal.SIGKILL, *range(9)) + deaths(signal.SIGSEGV, 9.5)

    assert wait_after(recent[-1], recent, 0.5, 0.0) == 0
