"""Costs of single calls, compared with the bare directory: memory, descriptors, time.

Times are processor times of caller and worker in sum, because other load hardly changes these.
"""

import ctypes
import fcntl
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools.callers import OTHER, USER
from tests.support.tools.columns import FEW_DESCRIPTORS, Ground
from tests.support.tools.files import outcome
from tests.support.tools.host_calls import getdents64
from tests.support.tools.listing import entries_of, listing

pytestmark = pytest.mark.full

both_sessions = pytest.mark.columns("control", "kernel-auto", "libfuse-auto")
with_few_descriptors = pytest.mark.columns(
    "control", "kernel-auto-few-descriptors", "libfuse-auto-few-descriptors"
)

OPEN_DIRECTORIES = 100
NAMES = 1_000
# A few KiB, and some memory that the allocator may take for other purposes.
BYTES_EACH = 16 * 1024

TRIES = 3
"""Of a measurement that other programs disturb."""

LARGE_DIRECTORY = 3_000
BUFFER_BYTES = 32 * 1024
SEEKS = 60
SEEK_TIMES = 3

LOCKS = 12_000
LOCKS_BETWEEN_CHECKS = 250
LOCKS_TIMES = 2


def server(ground: Ground) -> int:
    """Return the PID of the worker; on a bare directory, of this process."""
    return os.getpid() if ground.mount is None else ground.mount.worker_pid


def memory_of(pid: int) -> int:
    """Return the memory of a process in bytes, without mapped files, proc_pid_status(5)."""
    kinds = ("RssAnon:", "RssShmem:")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds))


def processor_ns(ground: Ground) -> int:
    """Return the processor time that this process and the worker have used."""
    used = time.process_time_ns()
    if ground.mount is None:
        return used
    clock = ~ground.mount.worker_pid << 3 | 2  # CPUCLOCK_SCHED, linux/posix-timers.h
    return used + time.clock_gettime_ns(clock)


def cost_ns(ground: Ground, call: Callable[[], object]) -> int:
    """Return the processor time of *call*."""
    before = processor_ns(ground)
    call()
    return processor_ns(ground) - before


@both_sessions
def test_memory_of_open_directories(ground: Ground, directory: Path, beneath: Path) -> None:
    """A directory that is open and partly read costs a few KiB."""
    for number in range(NAMES):
        (beneath / f"file-{number}").touch()
    descriptors: list[int] = []
    before = 0
    try:
        for number in range(OPEN_DIRECTORIES + 1):
            if number == 1:  # the first one also pays for memory that all share
                before = memory_of(server(ground))
            descriptors.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
            assert next(entries_of(descriptors[-1]))
        each = (memory_of(server(ground)) - before) // OPEN_DIRECTORIES
    finally:
        for descriptor in descriptors:
            os.close(descriptor)

    assert each <= BYTES_EACH


@with_few_descriptors
@pytest.mark.parametrize("kind", ["files", "directories"])
def test_other_users_can_list_while_one_has_many_files_open(
    directory: Path, beneath: Path, kind: str
) -> None:
    """If one user has many files open, other users can still list and stat(2)."""
    for number in range(2 * FEW_DESCRIPTORS):
        (beneath / str(number)).touch()
    reader, writer = os.pipe()

    def take_all() -> None:
        for number in range(2 * FEW_DESCRIPTORS):
            path = directory / str(number) if kind == "files" else directory
            if isinstance(outcome(os.open, path, os.O_RDONLY), str):
                break
        os.write(writer, b"!")
        time.sleep(60)

    def list_and_stat() -> tuple[object, set[object]]:
        listing = outcome(os.listdir, directory)
        names = [directory / str(number) for number in range(2 * FEW_DESCRIPTORS)]
        return len(listing) if isinstance(listing, list) else listing, {
            outcome(os.path.getsize, path) for path in names
        }

    try:
        with USER.start(take_all):
            assert os.read(reader, 1) == b"!"
            seen = OTHER.run(list_and_stat)
    finally:
        os.close(reader)
        os.close(writer)

    assert seen == (2 * FEW_DESCRIPTORS, {0})


@both_sessions
def test_seeking_in_a_large_directory(ground: Ground, directory: Path, beneath: Path) -> None:
    """Returning to a position in a directory costs little more than on the host: seekdir(3)."""
    for number in range(LARGE_DIRECTORY):
        (beneath / f"file-{number}").touch()
    costs = []
    for _ in range(TRIES):
        bare_ns, mount_ns = (cost_of_seeks(ground, top) for top in (beneath, directory))
        costs.append((bare_ns, mount_ns))
        if mount_ns <= SEEK_TIMES * bare_ns:
            return
    raise AssertionError(costs)


def cost_of_seeks(ground: Ground, directory: Path) -> int:
    """Return the processor time of SEEKS seeks to random positions in *directory*.

    Like seekdir(3) and readdir(3), a seek is one lseek(2) and one getdents64(2).
    """
    buffer = ctypes.create_string_buffer(BUFFER_BYTES)
    with listing(directory) as descriptor:
        positions = [entry.position for entry in entries_of(descriptor)]
        assert len(positions) == LARGE_DIRECTORY + 2
        chosen = random.Random(1).sample(positions[:-1], SEEKS)  # noqa: S311 - the same each time

        def seek() -> None:
            for position in chosen:
                os.lseek(descriptor, position, os.SEEK_SET)
                assert getdents64(descriptor, buffer)

        return cost_ns(ground, seek)


@pytest.mark.columns("control", "kernel-auto")
def test_many_lock_ranges(ground: Ground, directory: Path, beneath: Path) -> None:
    """Separate ranges of one owner cost at most twice the host's time: fcntl_locking(2)."""

    def taken_in_time() -> int:
        bare_ns = cost_ns(ground, lambda: take_locks(beneath / "bare", lambda: True))
        limit_ns = processor_ns(ground) + LOCKS_TIMES * bare_ns
        return take_locks(directory / "mount", lambda: processor_ns(ground) < limit_ns)

    assert any(taken_in_time() == LOCKS for _ in range(TRIES))


def take_locks(path: Path, goes_on: Callable[[], bool]) -> int:
    """Lock every other byte of *path*, up to LOCKS, while *goes_on*; return the number of locks."""
    with path.open("wb") as file:
        for number in range(LOCKS):
            if number % LOCKS_BETWEEN_CHECKS == 0 and not goes_on():
                return number
            fcntl.lockf(file, fcntl.LOCK_EX, 1, 2 * number)
    return LOCKS
