"""Mounts with `transport=io_uring`: the differences from /dev/fuse."""

import contextlib
import fcntl
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux import kernel_features, syscalls
from tests.support.tools.files import noise
from tests.support.tools.mounted import ABORT, Mounted, mounted
from tests.support.tools.rings import rings, switched_for, switched_on

pytestmark = pytest.mark.full

LIMIT_S = 60.0
SOON_S = 10.0
TRIES = 3
HUNG = 7
STAT = "import os, sys; os.sched_setaffinity(0, {0}); os.stat(sys.argv[1])"
# Nearly all of its time is spent in the worker.
LIST = """
import os, sys
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
while True:
    os.listdir(sys.argv[1])
"""


@pytest.fixture
def base(base: Path) -> Path:
    """Return a directory with an empty source."""
    (base / "source").mkdir()
    return base


@contextlib.contextmanager
def volume(base: Path, **options: str) -> Iterator[Mounted]:
    given = {"session": "kernel", "transport": "io_uring"} | options
    with contextlib.ExitStack() as stack:
        with switched_for(given):
            served = stack.enter_context(mounted(base, given))
        stack.enter_context(served.limited(LIMIT_S))
        yield served


@pytest.fixture
def hung(base: Path) -> Iterator[list[str]]:
    """Names below the source at which file systems are mounted that do not answer."""
    with contextlib.ExitStack() as stack:
        names = [f"hung-{number}" for number in range(HUNG)]
        for name in names:
            target = base / "source" / name
            target.mkdir()
            fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(syscalls.umount2, os.fsencode(target), syscalls.MNT_DETACH)
            stack.callback(os.close, fd)
            data = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
            syscalls.mount(b"hung", os.fsencode(target), b"fuse.hung", 0, data)
        yield names


def _stat(path: Path) -> subprocess.Popen[bytes]:
    """Start a stat(2) of *path* on the first processor."""
    return subprocess.Popen(
        [sys.executable, "-S", "-c", STAT, str(path)], stderr=subprocess.DEVNULL
    )


@contextlib.contextmanager
def _listing(served: Mounted) -> Iterator[None]:
    """Run a process that lists many names again and again, on the last processor."""
    many = served.source / "many"
    many.mkdir()
    for number in range(3_000):
        (many / str(number)).touch()
    listing = [sys.executable, "-S", "-c", LIST, str(served.mountpoint / "many")]
    with subprocess.Popen(listing) as process:
        try:
            yield
        finally:
            process.kill()


def threads(served: Mounted) -> int:
    return len(os.listdir(f"/proc/{served.worker_pid}/task"))


def test_requests_come_by_rings_and_not_by_the_device(base: Path) -> None:
    with volume(base) as served:
        assert rings(served.worker_pid)
        for link in Path(f"/proc/{served.worker_pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it may be closed meanwhile
                assert "io_uring" not in os.readlink(link)


def test_a_request_that_is_not_served_is_refused_for_good(base: Path) -> None:
    """If POLL fails with ENOSYS, the kernel takes files as always ready, as without a volume."""
    with volume(base) as served, (served.mountpoint / "file").open("w+") as file:
        poll = select.poll()
        poll.register(file, select.POLLIN | select.POLLOUT)
        assert poll.poll(0) == [(file.fileno(), select.POLLIN | select.POLLOUT)]


def test_auto_uses_the_device_although_rings_are_switched_on(base: Path) -> None:
    with switched_on(), volume(base, transport="auto") as served:
        assert not rings(served.worker_pid)


def test_many_callers_at_once(base: Path) -> None:
    content = noise(3_000_000)
    failed: list[int] = []

    def work(top: Path, number: int) -> None:
        directory = top / str(number)
        directory.mkdir()
        for at in range(30):
            (directory / f"file-{at}").write_bytes(content[: 1000 * at])
        (directory / "large").write_bytes(content)
        if (directory / "large").read_bytes() != content or len(os.listdir(directory)) != 31:
            failed.append(number)

    with volume(base) as served:
        workers = [threading.Thread(target=work, args=(served.mountpoint, at)) for at in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert failed == []
        for number in range(8):
            assert (served.source / str(number) / "large").read_bytes() == content


@pytest.mark.parametrize("busy", [False, True], ids=["", "busy"])
def test_hanging_callers_do_not_delay_others(base: Path, hung: list[str], *, busy: bool) -> None:
    """All callers run on one processor, and more of them hang than its queue has entries."""
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(volume(base))
        if busy:
            stack.enter_context(_listing(served))
        path = served.mountpoint / "file"
        path.write_text("content")
        first = threads(served)
        stuck = [_stat(served.mountpoint / name) for name in hung]
        try:
            for _ in range(5):
                assert _stat(path).wait(10.0) == 0
                assert _stat(served.mountpoint / "nothing").wait(10.0) != 0
            assert [process.poll() for process in stuck] == [None] * HUNG
            assert threads(served) > first
        finally:
            for process in stuck:
                process.kill()
            for name in hung:
                syscalls.umount2(os.fsencode(base / "source" / name), syscalls.MNT_FORCE | 2)
            for process in stuck:
                process.wait(10.0)
            for name in hung:  # for the fixture, which detaches it
                syscalls.mount(b"none", os.fsencode(base / "source" / name), b"tmpfs", 0, b"")


def test_unmounting_ends_the_worker_and_its_rings(base: Path) -> None:
    with volume(base) as served:
        pid = served.worker_pid
        (served.mountpoint / "file").touch()
        syscalls.umount2(os.fsencode(served.mountpoint), 0)
        assert served.process.wait(LIMIT_S) == 0
        assert not Path(f"/proc/{pid}").exists()


def test_an_aborted_connection_ends_the_worker_and_its_rings(base: Path) -> None:
    """The keeper aborts a mount that it gives up."""
    with volume(base) as served:
        pid = served.worker_pid
        (served.mountpoint / "file").touch()
        minor = str(os.minor(os.stat(served.mountpoint).st_dev))
        subprocess.run(["unshare", "--mount", "sh", "-c", ABORT, "sh", minor], check=True)
        assert served.process.wait(LIMIT_S) == 0
        assert not Path(f"/proc/{pid}").exists()


def test_a_worker_has_two_ring_threads_per_processor_and_one_for_the_device(
    base: Path,
) -> None:
    """On a busy machine a processor gets more threads at times, so one of several tries counts."""
    others = 2  # the main thread, and the reader of /dev/fuse
    found = []
    for attempt in range(TRIES):
        with volume(base) as served:
            for number in range(200):
                (served.mountpoint / f"file-{attempt}-{number}").write_text("content")
            found.append(threads(served))
    assert min(found) == others + 2 * len(kernel_features.possible_processors())


def test_a_closed_files_lock_is_gone_soon(base: Path) -> None:
    """The kernel does not wait for the answer to RELEASE, and another thread may serve SETLK."""
    with volume(base) as served:
        path = served.mountpoint / "file"
        path.touch()
        for _ in range(1_000):
            first, second = (os.open(path, os.O_RDWR) for _ in range(2))
            fcntl.flock(first, fcntl.LOCK_EX)
            os.close(first)
            deadline = time.monotonic() + SOON_S
            while not locked(second):
                assert time.monotonic() < deadline
            os.close(second)


def locked(fd: int) -> bool:
    """Return whether the file could be locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
