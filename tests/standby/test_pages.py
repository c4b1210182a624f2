"""A worker dies while the kernel waits for pages: a lock of a file has it drop all that it has.

A page that is being written stays until the WRITE is answered. The dead worker had that in hand, so
the next one must come before the wait ends.
"""

import errno
import fcntl
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.standby.volume import Volume, kill, volume
from tests.support.tools.callers import USER, Call
from tests.support.tools.held import one_held, threads_in
from tests.support.tools.processes import children, wait_until

LIMIT_S = 15.0
OPTIONS = {"session": "kernel", "standby": "on", "passthrough": "off", "cache": "auto"}
# The end of a connection under a caller that waits, or before a call.
ENDED = {errno.EIO, errno.ECONNABORTED, errno.ENOTCONN}
READS, WAITS = "fuse_dev_do_read", "folio_wait"


@pytest.fixture
def served(base: Path, request: pytest.FixtureRequest) -> Iterator[Volume]:
    """A volume, served by the program that the test names, or by the command."""
    program = getattr(request, "param", "passthrough")
    with volume(base, OPTIONS, program) as served, served.served.limited(LIMIT_S):
        path = served.served.source / "file"
        path.write_bytes(bytes(mmap.PAGESIZE))
        path.chmod(0o666)
        yield served


class Gate:
    """A place where a child waits until it is let through."""

    def __init__(self) -> None:
        self._arrived, self._passes = os.pipe(), os.pipe()

    def wait(self) -> None:
        os.write(self._arrived[1], b"1")
        os.read(self._passes[0], 1)

    def arrived(self) -> None:
        os.read(self._arrived[0], 1)

    def open(self) -> None:
        os.write(self._passes[1], b"1")

    def close(self) -> None:
        for fd in (*self._arrived, *self._passes):
            os.close(fd)


def readers(worker: int) -> list[int]:
    """Return all threads of a worker but the first, when all of them wait for requests."""
    found: list[int] = []

    def all_read() -> bool:
        found[:] = sorted({int(name) for name in os.listdir(f"/proc/{worker}/task")} - {worker})
        return sorted(threads_in(worker, READS)) == found

    wait_until(all_read)
    return found


class Callers(NamedTuple):
    """Two callers that wait for the volume."""

    writing: Call[None]
    """It waits for the end of a WRITE."""
    locking: Call[bytes]
    """It waits for a lock, and returns what it then reads."""


@contextmanager
def death(served: Volume, kill_worker: Callable[[int], object]) -> Iterator[Callers]:
    """Call *kill_worker* while the kernel waits for a page, and then run the block.

    The reader that is held has the WRITE in hand; another one takes the lock.
    """
    worker = served.whole().worker_pid
    path = served.served.mountpoint / "file"
    to_write, to_lock = Gate(), Gate()

    def write() -> None:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
            pages[:4] = b"text"
            to_write.wait()
            pages.flush()

    def lock() -> bytes:
        with path.open("r+b", buffering=0) as file:
            to_lock.wait()
            fcntl.lockf(file, fcntl.LOCK_EX)
            return file.read(4)

    def begin_to_write() -> None:
        to_write.open()
        wait_until(lambda: bool(threads_in(writing.pid, WAITS)))

    with ExitStack() as stack:
        for gate in (to_write, to_lock):
            stack.callback(gate.close)
        # An open(2) has the kernel write the changed pages. So the second process opens first.
        locking = stack.enter_context(USER.start(lock))
        to_lock.arrived()
        writing = stack.enter_context(USER.start(write))
        to_write.arrived()
        with one_held(readers(worker), begin_to_write):
            to_lock.open()
            wait_until(lambda: any(threads_in(pid, WAITS) for pid in (worker, *children(worker))))
            kill_worker(worker)
        yield Callers(writing, locking)


def kill_all(worker: int) -> None:
    os.killpg(os.getpgid(worker), signal.SIGKILL)


def test_a_worker_dies_while_the_kernel_waits_for_a_page(served: Volume) -> None:
    with death(served, kill) as callers:
        callers.writing.result(LIMIT_S)
        assert callers.locking.result(LIMIT_S) == b"text"
    assert served.whole().deaths == 1
    assert (served.served.source / "file").read_bytes()[:4] == b"text"


@pytest.mark.slow
@pytest.mark.parametrize("served", ["tests.support.tools.kept"], indirect=True)
def test_callers_get_an_error_if_all_processes_of_a_volume_die_while_the_kernel_waits(
    served: Volume,
) -> None:
    with death(served, kill_all) as callers:
        for call in callers:
            with pytest.raises(OSError) as caught:
                call.result(LIMIT_S)
            assert caught.value.errno in ENDED
    with pytest.raises(OSError, match="not connected"):
        served.served.mountpoint.stat()
