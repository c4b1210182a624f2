"""control.py: the page that plugin, guards and worker share."""

import itertools
import os
import signal
import struct
import time
from collections.abc import Iterator

import pytest

from passthrough.worker import control
from passthrough.worker.control import Death, End


@pytest.fixture
def fd() -> Iterator[int]:
    fd = control.make()
    yield fd
    os.close(fd)


@pytest.fixture
def page(fd: int) -> Iterator[control.Page]:
    page = control.Page(fd)
    yield page
    page.close()


def death(number: int, status: int = signal.SIGKILL) -> Death:
    return Death(1.5e9 + number, float(number), 100 + number, status, 1, 2 << 32)


def test_a_new_page_has_no_process_and_no_death(fd: int) -> None:
    assert control.read(fd) == control.State(
        worker_pid=0,
        guard_pids=(),
        generation=0,
        deaths=0,
        recent=(),
        ended=End.NONE,
        end_status=0,
        last_takeover_us=0,
        settled=0,
        replaceable=False,
        waits=False,
        program="",
    )


def test_what_one_process_writes_the_other_reads(fd: int, page: control.Page) -> None:
    if (pid := os.fork()) == 0:
        page.worker_pid = 7
        page.set_guard(0, 5, 9)
        page.set_guard(1, 6, 10)
        page.add_death(death(1))
        page.settle(3, 1500)
        page.end(End.ORDERLY, 1)
        page.end(End.GIVEN_UP, 2)  # the first note stays
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

    found = control.read(fd)

    assert (found.worker_pid, found.guard_pids, found.last_takeover_us) == (7, (5, 6), 1500)
    assert (found.deaths, found.recent) == (1, (death(1),))
    assert (found.ended, found.end_status) == (End.ORDERLY, 1)
    assert page.guard(1) == (6, 10)
    assert page.settled == 3


def test_a_guard_that_is_gone_is_not_listed(page: control.Page) -> None:
    page.set_guard(0, 5, 9)
    page.set_guard(1, 6, 10)
    page.set_guard(0, 0, control.NO_FD)

    assert page.state().guard_pids == (6,)


def test_the_last_15_deaths_are_kept_in_order(page: control.Page) -> None:
    for number in range(40):
        page.add_death(death(number))

    assert page.state().deaths == 40
    assert page.state().recent == tuple(death(number) for number in range(25, 40))


@pytest.mark.parametrize(
    ("status", "own_fault", "text"),
    [
        (signal.SIGKILL, False, "was killed by SIGKILL"),
        (signal.SIGTERM, False, "was killed by SIGTERM"),
        (signal.SIGSEGV, True, "was killed by SIGSEGV"),
        (77 << 8, True, "ended with status 77"),
        (control.STATUS_UNKNOWN, True, "ended with an unknown status"),
        (50, True, "was killed by signal 50"),
    ],
)
def test_how_a_worker_died(status: int, *, own_fault: bool, text: str) -> None:
    assert death(1, status).own_fault == own_fault
    assert control.describe(status) == text


def test_the_word_has_the_generation_and_the_descriptor(fd: int, page: control.Page) -> None:
    assert (page.generation, page.worker_fd) == (0, control.NO_FD)

    os.pwrite(fd, struct.pack("<Ii", 4, 17), control.WORD_AT)

    assert (page.generation, page.worker_fd) == (4, 17)
    assert page.word == 17 << 32 | 4


def test_a_crash_is_known_until_it_is_forgotten(fd: int, page: control.Page) -> None:
    assert page.crash() == (0, 0)
    os.pwrite(fd, struct.pack("<IIQ", 35, 1, 9), control.CRASH_AT)
    assert page.crash() == (35, 9)

    page.forget_crash()

    assert page.crash() == (0, 0)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"\0"),
        (8, b"\2"),
        (12, struct.pack("<i", -1)),
        (24, struct.pack("<i", 1 << 23)),
        (44, b"\4"),
        (128, struct.pack("<d", float("nan"))),
        (144, struct.pack("<i", -2)),
        (148, struct.pack("<i", 1 << 16)),
    ],
)
def test_values_that_cannot_be_are_refused(
    fd: int, page: control.Page, at: int, value: bytes
) -> None:
    page.add_death(death(1))
    os.pwrite(fd, value, at)

    with pytest.raises(control.ControlError):
        control.read(fd)


def test_another_file_is_no_control_page() -> None:
    with open("/dev/zero", "rb") as zeros:
        with pytest.raises(control.ControlError):
            control.read(zeros.fileno())
        with pytest.raises(control.ControlError):
            control.Page(zeros.fileno())


def test_the_page_keeps_its_size(fd: int) -> None:
    """Otherwise a guard that reads the page would die by SIGBUS."""
    for size in (0, 2 * control.SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)


def test_a_reader_sees_no_half_of_a_change(fd: int, page: control.Page) -> None:
    child = os.fork()
    if child == 0:
        try:
            for number in itertools.count(1):
                page.add_death(death(number))
                page.worker_pid = 100 + number % 2
                page.set_guard(0, 200 + number % 2, 5)
        finally:
            os._exit(1)
    try:
        while control.read(fd).deaths < 100:
            pass
        for _ in range(10_000):
            state = control.read(fd)
            assert state.worker_pid in {100, 101}
            assert state.guard_pids in {(200,), (201,)}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_guards_are_held_for_a_time_by_a_process_that_lives(page: control.Page) -> None:
    now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert page.held_s() == 0
    page.hold(os.getpid(), now_s + 100)
    assert 90 < page.held_s() <= 100
    page.hold(os.getpid(), now_s - 1)
    assert page.held_s() == 0
    page.hold(ended_process(), now_s + 100)
    assert page.held_s() == 0
    page.hold(os.getpid(), now_s + 100)
    page.end(End.REPLACED, 0)
    assert page.held_s() == 0


def ended_process() -> int:
    """Return the process id of a child that has ended and been reaped."""
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_a_page_names_the_program_that_has_made_it() -> None:
    fd = control.make("0123456789abcdef" * 2)
    assert control.read(fd).program == "0123456789abcdef" * 2
    os.close(fd)


def test_deaths_go_from_one_page_to_another(fd: int, page: control.Page) -> None:
    for number in range(20):
        page.add_death(death(number))
    other_fd = control.make()
    other = control.Page(other_fd)

    other.take_history(page)

    found, before = control.read(other_fd), control.read(fd)
    assert (found.deaths, found.recent) == (before.deaths, before.recent)
    assert found.generation == 0
    other.close()
    os.close(other_fd)
