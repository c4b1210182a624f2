"""Locks between processes: flock(2), fcntl_locking(2), and open file description locks."""

import errno
import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.tools.callers import Caller, together

LOCK = struct.Struct(
    "=hhxxxxqqixxxx"
)  # struct flock on 64-bit Linux: type, whence, start, len, pid
F_OFD_SETLK = 37
LIMIT_S = 10.0


def flock(descriptor: int, operation: int) -> None:
    """Lock the whole file by flock(2), without waiting."""
    fcntl.flock(descriptor, operation | fcntl.LOCK_NB)


def lockf(descriptor: int, operation: int) -> None:
    """Lock the whole file by fcntl(2), without waiting."""
    # Python's lockf accepts LOCK_NB only together with LOCK_SH or LOCK_EX.
    fcntl.lockf(descriptor, operation | (fcntl.LOCK_NB if operation != fcntl.LOCK_UN else 0))


def ofd_lock(descriptor: int, operation: int) -> None:
    """Lock the whole file for the open file description, without waiting."""
    kinds = {
        fcntl.LOCK_SH: fcntl.F_RDLCK,
        fcntl.LOCK_EX: fcntl.F_WRLCK,
        fcntl.LOCK_UN: fcntl.F_UNLCK,
    }
    fcntl.fcntl(descriptor, F_OFD_SETLK, LOCK.pack(kinds[operation], os.SEEK_SET, 0, 0, 0))


Lock = Callable[[int, int], None]
every_lock = pytest.mark.parametrize("lock", [flock, lockf, ofd_lock], ids=lambda f: f.__name__)


@pytest.fixture
def file(directory: Path, caller: Caller) -> Path:
    """Return a file to lock, the caller's own."""
    path = directory / "file"
    caller.run(lambda: path.write_bytes(bytes(100)))
    return path


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open to read and write."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def can_lock(path: Path, lock: Lock, operation: int) -> bool:
    """Return whether a new descriptor gets the lock."""
    with opened(path) as descriptor:
        try:
            lock(descriptor, operation)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
            return False
        return True


@every_lock
def test_an_exclusive_lock_excludes_all_others(file: Path, caller: Caller, lock: Lock) -> None:
    """An exclusive lock excludes all others until it is released: flock(2)."""
    with opened(file) as descriptor:
        lock(descriptor, fcntl.LOCK_EX)
        assert not caller.run(lambda: can_lock(file, lock, fcntl.LOCK_EX))
        assert not caller.run(lambda: can_lock(file, lock, fcntl.LOCK_SH))
        lock(descriptor, fcntl.LOCK_UN)

        assert caller.run(lambda: can_lock(file, lock, fcntl.LOCK_EX))


@every_lock
def test_shared_locks_exclude_exclusive_ones(file: Path, caller: Caller, lock: Lock) -> None:
    """A shared lock allows other shared locks and no exclusive one: flock(2), fcntl_locking(2)."""
    with opened(file) as descriptor:
        lock(descriptor, fcntl.LOCK_SH)

        assert caller.run(lambda: can_lock(file, lock, fcntl.LOCK_SH))
        assert not caller.run(lambda: can_lock(file, lock, fcntl.LOCK_EX))


@every_lock
def test_a_lock_ends_with_its_descriptor(file: Path, caller: Caller, lock: Lock) -> None:
    """Closing the descriptor releases the lock: flock(2), fcntl_locking(2)."""
    with opened(file) as descriptor:
        lock(descriptor, fcntl.LOCK_EX)

    assert caller.run(lambda: can_lock(file, lock, fcntl.LOCK_EX))


@every_lock
def test_a_lock_ends_with_its_process(file: Path, caller: Caller, lock: Lock) -> None:
    """A process that is killed leaves no lock behind: flock(2), fcntl_locking(2)."""
    reader, writer = os.pipe()

    def hold() -> None:
        with opened(file) as descriptor:
            lock(descriptor, fcntl.LOCK_EX)
            os.write(writer, b"!")
            signal.pause()

    with caller.start(hold) as holder:
        assert os.read(reader, 1) == b"!"
        assert not can_lock(file, lock, fcntl.LOCK_EX)
        holder.kill()

        assert can_lock(file, lock, fcntl.LOCK_EX)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("lock", [flock, ofd_lock], ids=lambda f: f.__name__)
def test_two_descriptors_of_one_process(file: Path, lock: Lock) -> None:
    """The owner of a flock or OFD lock is the open file description, not the process: flock(2)."""
    with opened(file) as first:
        lock(first, fcntl.LOCK_EX)
        assert not can_lock(file, lock, fcntl.LOCK_EX)
        with opened(file):
            pass
        assert not can_lock(file, lock, fcntl.LOCK_EX)


def test_the_owner_of_a_posix_lock_is_the_process(file: Path, caller: Caller) -> None:
    """A process does not exclude itself; closing any descriptor releases all: fcntl_locking(2)."""
    with opened(file) as first:
        lockf(first, fcntl.LOCK_EX)
        assert not caller.run(lambda: can_lock(file, lockf, fcntl.LOCK_EX))
        with opened(file):
            pass

        assert caller.run(lambda: can_lock(file, lockf, fcntl.LOCK_EX))


def test_locks_of_ranges(file: Path, caller: Caller) -> None:
    """Locks conflict only if their ranges overlap: fcntl_locking(2)."""

    def can_lock_range(start: int, length: int) -> bool:
        with opened(file) as descriptor:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
            except OSError:
                return False
            return True

    with opened(file) as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 10, 20)

        assert caller.run(lambda: can_lock_range(0, 20))
        assert caller.run(lambda: can_lock_range(30, 10))
        assert not caller.run(lambda: can_lock_range(29, 1))
        assert not caller.run(lambda: can_lock_range(0, 0))
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 5, 25)
        assert caller.run(lambda: can_lock_range(25, 5))
        assert not caller.run(lambda: can_lock_range(20, 5))


def test_getlk_returns_the_holder(file: Path, caller: Caller) -> None:
    """F_GETLK returns type, range and process of the conflicting lock: fcntl_locking(2)."""

    def ask() -> tuple[int, ...]:
        with opened(file) as descriptor:
            wanted = LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            return LOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, wanted))

    with opened(file) as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 10, 20)

        assert caller.run(ask) == (fcntl.F_WRLCK, os.SEEK_SET, 20, 10, os.getpid())
    assert caller.run(ask)[0] == fcntl.F_UNLCK


@pytest.mark.parametrize("wait", [fcntl.flock, fcntl.lockf], ids=lambda f: f.__name__)
def test_waiting_for_a_lock(file: Path, caller: Caller, wait: Callable[[int, int], None]) -> None:
    """A process that waits for a lock gets it when the holder releases it: flock(2)."""

    def read_when_locked() -> bytes:
        with opened(file) as descriptor:
            wait(descriptor, fcntl.LOCK_EX)
            return os.pread(descriptor, 4, 0)

    with opened(file) as descriptor:
        wait(descriptor, fcntl.LOCK_EX)
        with caller.start(read_when_locked) as waiting:
            os.pwrite(descriptor, b"half", 0)
            os.pwrite(descriptor, b"done", 0)
            wait(descriptor, fcntl.LOCK_UN)

            assert waiting.result() == b"done"


def test_counting_under_a_lock(file: Path, caller: Caller) -> None:
    """Processes that count under a lock lose no step: each reads the last number: flock(2)."""
    processes, steps = 3, 60

    def count() -> None:
        with opened(file) as descriptor:
            for _ in range(steps):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                number = int.from_bytes(os.pread(descriptor, 8, 0), "little")
                os.pwrite(descriptor, (number + 1).to_bytes(8, "little"), 0)
                fcntl.flock(descriptor, fcntl.LOCK_UN)

    together(caller.start(count) for _ in range(processes))

    assert int.from_bytes(file.read_bytes()[:8], "little") == processes * steps


def test_an_exclusive_lock_needs_a_writable_descriptor(file: Path) -> None:
    """An exclusive lock by fcntl(2) fails with EBADF on O_RDONLY: fcntl_locking(2)."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        with pytest.raises(OSError) as caught:
            lockf(descriptor, fcntl.LOCK_EX)
        lockf(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)

    assert caught.value.errno == errno.EBADF


@pytest.mark.libfuse_lacks(
    "locks that other volumes and the host see", "a lock holds among the users of one mount"
)
@every_lock
def test_locks_hold_beneath(file: Path, beneath: Path, caller: Caller, lock: Lock) -> None:
    """A lock through the mount conflicts with one on the host's file: fcntl_locking(2)."""

    def denied(path: Path) -> bool:
        with opened(path) as descriptor:
            try:
                lock(descriptor, fcntl.LOCK_EX)
            except BlockingIOError:
                return True
        return False

    for held, wanted in ((file, beneath / "file"), (beneath / "file", file)):
        with opened(held) as descriptor:
            lock(descriptor, fcntl.LOCK_EX)
            assert caller.run(partial(denied, wanted))
        deadline = time.monotonic() + LIMIT_S
        while caller.run(partial(denied, wanted)):
            # close(2) does not wait until the worker has answered FLUSH or RELEASE.
            assert time.monotonic() < deadline


@pytest.mark.parametrize("wait", [fcntl.flock, fcntl.lockf], ids=lambda f: f.__name__)
def test_a_signal_ends_the_wait(
    file: Path, caller: Caller, wait: Callable[[int, int], None]
) -> None:
    """A signal interrupts the wait for a lock, and the process does not get it: signal(7)."""

    def interrupted() -> str:
        def alarm(*_: object) -> None:
            raise TimeoutError

        signal.signal(signal.SIGALRM, alarm)
        with opened(file) as descriptor:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            try:
                wait(descriptor, fcntl.LOCK_EX)
            except TimeoutError:
                return "interrupted"
        return "locked"

    with opened(file) as descriptor:
        wait(descriptor, fcntl.LOCK_EX)
        assert caller.run(interrupted) == "interrupted"
        wait(descriptor, fcntl.LOCK_UN)
    with opened(file) as descriptor:
        wait(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_shared_posix_lock_ends_with_any_descriptor(file: Path, caller: Caller) -> None:
    """A process loses its shared lock if it closes any descriptor of the file, even O_RDONLY."""

    def free() -> bool:
        with opened(file) as descriptor:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    assert caller.run(free)
    with opened(file) as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_SH)
        assert not caller.run(free)
        os.close(os.open(file, os.O_RDONLY))
        assert caller.run(free)


def test_a_deadlock_of_two_processes_is_an_error(file: Path, caller: Caller) -> None:
    """A lock that would close a cycle of waiting processes fails with EDEADLK: fcntl_locking(2)."""

    def wait_for_the_first() -> int:
        with opened(file) as descriptor:
            fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 1)
            os.pwrite(descriptor, b"!", 50)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 0)
            except OSError as error:
                return error.errno or -1
        return 0

    with opened(file) as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 0)
        with caller.start(wait_for_the_first) as other:
            while os.pread(descriptor, 1, 50) != b"!":
                pass
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 1)
            except OSError as error:
                mine = error.errno or -1
            else:
                mine = 0
            fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, 0)

            assert sorted([mine, other.result()]) == [0, errno.EDEADLK]
