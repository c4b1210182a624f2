"""Locks through mounts of the kernel session: two volumes on one source, and the host."""

import contextlib
import errno
import fcntl
import mmap
import os
import select
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.support.fakes.hung import HungSource
from tests.support.tools.callers import ROOT, Call, together
from tests.support.tools.mounted import Mounted, mounted
from tests.support.tools.pids import threads_limited
from tests.support.tools.processes import threads
from tests.support.tools.rings import switched_for

pytestmark = pytest.mark.full

LIMIT_S = 60.0
MORE_THREADS = 3
ENOUGH_WAITERS = 16  # more than the threads that can be started, also over io_uring
STAT_CALLS = ("262 ", "79 ")  # newfstatat(2), x86_64 and aarch64
STAT = "import os, sys; os.stat(sys.argv[1])"
WAITING = 300  # more than _MAX_THREADS, which does not count waits for locks


@contextlib.contextmanager
def volume(base: Path, **options: str) -> Iterator[Mounted]:
    with mounted(base, {"session": "kernel"} | options) as served, served.limited(LIMIT_S):
        yield served


def lock(path: Path, *, whole: bool) -> str:
    """Wait for a lock, by flock(2) for the *whole* file or by fcntl(2), and give the lock back."""
    with path.open("r+b") as file:
        try:
            (fcntl.flock if whole else fcntl.lockf)(file, fcntl.LOCK_EX)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "locked"


@contextlib.contextmanager
def syncing(path: Path) -> Iterator[None]:
    """Run a process that syncs *path* again and again."""
    path.touch()
    program = "import os, sys\nwhile True: os.fsync(0)"
    with (
        path.open("rb") as file,
        subprocess.Popen([sys.executable, "-c", program], stdin=file) as one,
    ):
        try:
            yield
            assert one.poll() is None
        finally:
            one.kill()


def count(database: Path, steps: int) -> None:
    """Add to a counter, each time in a transaction."""
    connection = sqlite3.connect(database, timeout=LIMIT_S, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    for _ in range(steps):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE counter SET number = number + 1")
        connection.execute("COMMIT")
    connection.close()


def test_sqlite_on_a_volume_and_on_the_host_loses_no_write(base: Path) -> None:
    """Each process must wait for the other's lock, and then see the other's writes."""
    with volume(base) as served:
        database = served.mountpoint / "database"
        connection = sqlite3.connect(database)
        connection.execute("CREATE TABLE counter AS SELECT 0 AS number")
        connection.commit()
        connection.close()
        paths = [database, served.source / "database"]
        together(ROOT.start(partial(count, path, 40)) for path in paths)

        connection = sqlite3.connect(database)
        assert connection.execute("SELECT number FROM counter").fetchall() == [(80,)]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()


def test_many_waits_for_a_lock_do_not_stop_the_mount(base: Path) -> None:
    with volume(base) as served:
        path = served.mountpoint / "file"
        path.touch()

        def lock() -> None:
            with path.open("r+b") as file:
                fcntl.lockf(file, fcntl.LOCK_EX)

        with path.open("r+b") as held:
            fcntl.lockf(held, fcntl.LOCK_EX)
            with contextlib.ExitStack() as stack:
                waiting = [stack.enter_context(ROOT.start(lock)) for _ in range(WAITING)]
                (served.mountpoint / "other").write_bytes(b"served")
                assert (served.source / "other").read_bytes() == b"served"
                fcntl.lockf(held, fcntl.LOCK_UN)
                for one in waiting:
                    one.result()


def test_a_caller_killed_while_it_waits_ends_at_once(base: Path) -> None:
    with volume(base) as served:
        path = served.mountpoint / "file"
        path.touch()

        def lock() -> None:
            with path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)

        with path.open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with ROOT.start(lock):
                pass  # the end of the block kills it
            fcntl.flock(held, fcntl.LOCK_UN)
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_thread_that_hangs_for_ever_delays_few_locks(base: Path) -> None:
    """A lock that is refused waits for requests of before, 60 ms at most, and once for each."""
    with contextlib.ExitStack() as stack:
        (base / "source" / "hung").mkdir(parents=True)
        hung = HungSource(base / "source" / "hung")
        stack.callback(hung.close)
        served = stack.enter_context(volume(base))
        file = stack.enter_context((served.source / "file").open("w"))
        fcntl.flock(file, fcntl.LOCK_EX)
        asking = stack.enter_context((served.mountpoint / "file").open())
        stat = [sys.executable, "-S", "-c", STAT, str(served.mountpoint / "hung")]
        hanging = stack.enter_context(subprocess.Popen(stat, stderr=subprocess.DEVNULL))
        stack.callback(hung.release)
        stack.callback(hanging.kill)
        while not hangs(served.worker_pid):
            assert hanging.poll() is None
        took = []
        for _ in range(10):
            began = time.monotonic()
            with pytest.raises(BlockingIOError):
                fcntl.flock(asking, fcntl.LOCK_EX | fcntl.LOCK_NB)
            took.append(time.monotonic() - began)
        assert statistics.median(took) < 0.03  # 3 ms on an idle machine
        assert sorted(took)[7] < 0.06


def hangs(pid: int) -> bool:
    """Return whether a thread of process *pid* looks at the file system that does not answer."""
    return any(call.startswith(STAT_CALLS) for call in threads(pid, "syscall").values())


def test_local_locks_do_not_reach_the_host(base: Path) -> None:
    with volume(base, locks="local") as served:
        path = served.mountpoint / "file"
        path.touch()
        with path.open("r+b") as ours, (served.source / "file").open("r+b") as theirs:
            for lock in (fcntl.flock, fcntl.lockf):
                lock(ours, fcntl.LOCK_EX)
                lock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_immutable_flag_is_refused(base: Path) -> None:
    """The worker has no CAP_LINUX_IMMUTABLE."""
    with volume(base) as served:
        (served.mountpoint / "file").touch()
        fd = os.open(served.mountpoint / "file", os.O_RDONLY)
        with pytest.raises(PermissionError) as refused:
            fcntl.ioctl(fd, 0x4008_6602, (0x10).to_bytes(8, "little"))  # FS_IOC_SETFLAGS
        os.close(fd)

    assert refused.value.errno == errno.EPERM


@pytest.mark.slow
def test_a_closed_files_lock_does_not_block_the_next_caller(base: Path) -> None:
    """The kernel does not wait for the answer to RELEASE, and another thread may serve SETLK.

    Without a wait for that thread, one lock of some hundred is refused. But on a busy machine a
    thread that has read RELEASE may lose its processor before others can see that. So one of three
    series has to be without a refusal.
    """
    with volume(base) as served:
        path = served.mountpoint / "file"
        path.touch()
        with syncing(served.mountpoint / "other"):  # it makes the worker use several threads
            assert any(refusals(path) == 0 for _ in range(3))


def refusals(path: Path) -> int:
    """Return how many of 2,000 locks are refused, each right after another file was closed."""
    refused = 0
    for _ in range(2_000):
        first, second = (os.open(path, os.O_RDWR) for _ in range(2))
        fcntl.flock(first, fcntl.LOCK_EX)
        os.close(first)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            refused += 1
        os.close(second)
    return refused


@pytest.mark.parametrize("transport", ["dev", "io_uring"])
@pytest.mark.parametrize("whole", [False, True])
def test_the_last_thread_waits_for_no_lock(base: Path, transport: str, *, whole: bool) -> None:
    """One thread stays for the unlock; a caller that would block it gets ENOLCK."""
    with switched_for({"transport": transport}), volume(base, transport=transport) as served:
        path = served.mountpoint / "file"
        path.touch()
        with path.open("r+b") as file, threads_limited(served.worker_pid, MORE_THREADS):
            (fcntl.flock if whole else fcntl.lockf)(file, fcntl.LOCK_EX)
            waiters = [ROOT.start(partial(lock, path, whole=whole)) for _ in range(ENOUGH_WAITERS)]
            with contextlib.ExitStack() as stack:
                for waiter in waiters:
                    stack.enter_context(waiter)
                wait_for_first(waiters)
                assert path.stat().st_size == 0
                (fcntl.flock if whole else fcntl.lockf)(file, fcntl.LOCK_UN)
                outcomes = [waiter.result() for waiter in waiters]
            assert lock(path, whole=whole) == "locked"
        assert set(outcomes) == {"locked", "ENOLCK"}
        assert served.logged().count("cannot start more than") == 1


def test_a_lock_is_refused_if_no_process_can_drop_the_pages(base: Path) -> None:
    """The pages are those of a mapping, which ask for no attributes."""
    with volume(base, passthrough="off", cache="auto") as served:
        path = served.mountpoint / "file"
        path.write_bytes(b"old")
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 3) as pages:
            assert pages[:] == b"old"
            with threads_limited(served.worker_pid, 0):
                (served.source / "file").write_bytes(b"new")
                with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
                    fcntl.lockf(file, fcntl.LOCK_EX)
            fcntl.lockf(file, fcntl.LOCK_EX)
            assert pages[:] == b"new"


def wait_for_first(waiters: Sequence[Call[str]]) -> None:
    """Wait until one of the processes has answered."""
    ready, _, _ = select.select([waiter.answer_fd for waiter in waiters], [], [], LIMIT_S)
    assert ready
