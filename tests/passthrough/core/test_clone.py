"""clone.pyx: processes that share their table of descriptors."""

import errno
import fcntl
import logging
import mmap
import os
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from passthrough.core.clone import clone, copy_descriptors, exchange
from passthrough.core.crash import catch_crashes


def in_child(work: Callable[[], object]) -> int:
    """Run *work* in a process made by `clone`; return its wait status."""
    if (pid := clone()) == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def test_a_descriptor_outlives_the_process_that_opened_it() -> None:
    shared = mmap.mmap(-1, mmap.PAGESIZE)

    def work() -> None:
        fd = os.memfd_create("kept")
        os.write(fd, b"alive")
        shared[:4] = fd.to_bytes(4, "little")

    assert in_child(work) == 0
    fd = int.from_bytes(shared[:4], "little")
    assert os.pread(fd, 10, 0) == b"alive"
    os.close(fd)
    shared.close()


def test_a_closed_descriptor_is_closed_for_both() -> None:
    fd = os.memfd_create("gone")

    assert in_child(lambda: os.close(fd)) == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_memory_and_working_directory_are_the_child_s_own() -> None:
    before = os.getcwd()
    found: list[int] = []

    def work() -> None:
        found.append(1)
        os.chdir("/")

    assert in_child(work) == 0
    assert (found, os.getcwd()) == ([], before)


def test_python_works_in_the_child() -> None:
    """Threads, the log, signals and a child of its own."""

    def work() -> None:
        logging.getLogger("tests.clone").debug("a line")
        thread = threading.Thread(target=os.getpid)
        thread.start()
        thread.join()
        caught: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, _: caught.append(number))
        signal.raise_signal(signal.SIGUSR1)
        assert caught == [signal.SIGUSR1]
        assert in_child(lambda: None) == 0

    assert in_child(work) == 0


def test_of_several_processes_one_changes_the_word() -> None:
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    shared[:8] = (41).to_bytes(8, "little")
    pids = []
    for wanted in range(100, 120):
        if (pid := clone()) == 0:
            os._exit(exchange(shared, 0, 41, wanted))
        pids.append(pid)

    statuses = [os.waitpid(pid, 0)[1] for pid in pids]

    winners = [100 + at for at, status in enumerate(statuses) if os.WEXITSTATUS(status)]
    assert winners == [int.from_bytes(shared[:8], "little")]
    shared.close()


@pytest.mark.parametrize("at", [-8, 4, mmap.PAGESIZE - 4, mmap.PAGESIZE])
def test_a_word_outside_of_the_page_is_refused(at: int) -> None:
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    with pytest.raises(ValueError, match="no word"):
        exchange(shared, at, 0, 1)
    with pytest.raises(ValueError, match="no room"):
        catch_crashes(shared, at if at != mmap.PAGESIZE - 4 else mmap.PAGESIZE - 8)
    shared.close()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE])
def test_a_crash_still_ends_the_process_by_its_signal(number: signal.Signals) -> None:
    """The thread serves no request, so that nothing is noted."""
    shared = mmap.mmap(-1, mmap.PAGESIZE)

    def work() -> None:
        catch_crashes(shared, 64)
        if number is signal.SIGABRT:
            os.abort()
        os.kill(os.getpid(), number)

    assert os.WTERMSIG(in_child(work)) == number
    assert not any(shared[:])
    shared.close()


NUMBERS = (200, 201, 205, 300)


def forked(work: Callable[[], object]) -> int:
    """Run *work* in a process with a table of descriptors of its own; return its wait status."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def is_locked(file: Path) -> None:
    with file.open("r+b") as other, pytest.raises(BlockingIOError):
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def process_with(opened: Path, numbers: tuple[int, ...]) -> Iterator[int]:
    """Yield a process descriptor of a process that has a file open under these numbers alone."""
    (ready, tell), (wait, end) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end)
        fd = os.open(opened, os.O_RDWR)
        for number in numbers:
            os.dup2(fd, number)
        os.write(tell, b"!")
        os.read(wait, 1)
        os._exit(0)
    os.read(ready, 1)
    process_fd = os.pidfd_open(pid)
    for fd in (ready, tell, wait):
        os.close(fd)
    try:
        yield process_fd
    finally:
        os.close(end)
        os.waitpid(pid, 0)
        os.close(process_fd)


def open_here() -> set[int]:
    """Return the descriptors of this process, and that of the listing."""
    return set(map(int, os.listdir("/proc/self/fd")))


def test_descriptors_are_copied_and_no_duplicate_of_them_is_closed(tmp_path: Path) -> None:
    """Each close(2) of a file ends all locks of the process on it, fcntl_locking(2)."""
    file = tmp_path / "file"
    file.write_bytes(b"content")

    def work() -> None:
        with file.open("r+b") as held, process_with(file, NUMBERS) as process_fd:
            fcntl.lockf(held, fcntl.LOCK_EX)
            before = open_here()
            copy_descriptors(process_fd, reversed(NUMBERS))
            assert open_here() - before == set(NUMBERS)
            assert {os.pread(fd, 9, 0) for fd in NUMBERS} == {b"content"}
            assert forked(lambda: is_locked(file)) == 0

    assert forked(work) == 0


@pytest.mark.parametrize(
    ("numbers", "here", "number"),
    [((200,), 200, errno.EBUSY), ((200, 201, 202), 100, errno.EBADF)],
)
def test_a_descriptor_that_cannot_be_copied_leaves_no_other(
    tmp_path: Path, numbers: tuple[int, ...], here: int, number: int
) -> None:
    (tmp_path / "file").touch()

    def work() -> None:
        os.dup2(0, here)
        with process_with(tmp_path / "file", (200, 201)) as process_fd:
            before = open_here()
            with pytest.raises(OSError, match=re.escape(f"[Errno {number}]")):
                copy_descriptors(process_fd, numbers)
            assert open_here() - before <= {200, 201}

    assert forked(work) == 0


@pytest.mark.parametrize(("most", "refused"), [(99, True), (100, False)])
def test_wide_gaps_between_descriptors_are_refused(
    tmp_path: Path, most: int, *, refused: bool
) -> None:
    """A worker under control of an attacker may open a descriptor of any number."""
    (tmp_path / "file").touch()
    numbers = (500, 551, 602)  # 100 free numbers between them

    def work() -> None:
        with process_with(tmp_path / "file", numbers) as process_fd:
            copied = partial(copy_descriptors, process_fd, numbers)
            before = open_here()
            free = 500 - len(before) + 1  # the listing has ended
            if refused:
                with pytest.raises(OSError, match="free numbers below the descriptor 602"):
                    copied(most_filled=free + most)
                assert open_here() - before == {500, 551}
            else:
                copied(most_filled=free + most)
                assert open_here() - before == {*numbers}

    assert forked(work) == 0
