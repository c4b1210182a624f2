"""Features that a volume and the directory of its host do not share; the README lists them."""

import ctypes
import errno
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.tools.files import refused
from tests.support.tools.mounted import Mounted, mounted

LIMIT_S = 30.0
EVENTS = 0xFFF  # IN_ALL_EVENTS, inotify(7)
IN_MODIFY = 0x2
EVENT = struct.Struct("=iIII")  # wd, mask, cookie, len; the name follows
SETTLE_S = 0.2  # for events that must not come
CLOSED_S = 5.0  # RELEASE follows close(2) within milliseconds
POLL_S = 0.01

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(params=["kernel", "libfuse"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    with mounted(tmp_path, {"session": request.param}) as served, served.limited(LIMIT_S):
        (served.source / "file").write_text("content")
        yield served


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def watched(directory: Path) -> Iterator[int]:
    """Open a descriptor of the events in *directory*, inotify(7)."""
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert fd >= 0
    try:
        assert libc.inotify_add_watch(fd, os.fsencode(directory), EVENTS) >= 0
        yield fd
    finally:
        os.close(fd)


@contextmanager
def running(program: Path) -> Iterator[None]:
    """Run *program*, a copy of sleep(1), until the block ends."""
    process = subprocess.Popen([program, "60"], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def executed(program: Path) -> int | None:
    """Execute *program*; return the errno of execve(2), else the exit status."""
    try:
        return subprocess.run([program], check=False).returncode
    except OSError as error:
        return error.errno


def copied(program: str, to: Path) -> Path:
    found = shutil.which(program)
    assert found is not None
    shutil.copy(found, to)
    return to


def test_an_edit_on_the_host_makes_no_inotify_event_in_the_volume(served: Mounted) -> None:
    (served.mountpoint / "file").stat()
    with watched(served.mountpoint) as fd:
        (served.source / "file").write_text("edited on the host")
        time.sleep(SETTLE_S)
        refused(errno.EAGAIN, lambda: os.read(fd, 4096))
        (served.mountpoint / "file").write_text("edited in the volume")

        assert os.read(fd, 4096)


def test_an_edit_in_the_volume_makes_inotify_events_on_the_host(served: Mounted) -> None:
    with watched(served.source) as fd:
        (served.mountpoint / "file").write_text("edited in the volume")

        assert os.read(fd, 4096)


def test_truncate_makes_the_inotify_event_that_it_makes_on_the_host(served: Mounted) -> None:
    """A watcher of the host takes the close of a file that was open for writing for a new file."""
    with watched(served.source) as fd:
        os.truncate(served.mountpoint / "file", 3)
        events = os.read(fd, 4096)

    assert EVENT.unpack_from(events)[1] == IN_MODIFY
    assert len(events) == EVENT.size + EVENT.unpack(events[: EVENT.size])[3]


@pytest.mark.parametrize(
    ("binds", "connects", "number"),
    [
        ("source", "mountpoint", errno.ECONNREFUSED),
        ("mountpoint", "source", errno.ECONNREFUSED),
        ("mountpoint", "mountpoint", 0),
    ],
)
def test_a_unix_socket_connects_within_the_volume_only(
    served: Mounted, binds: str, connects: str, number: int
) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(getattr(served, binds) / "socket"))
        server.listen()
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.settimeout(LIMIT_S)

            assert client.connect_ex(str(getattr(served, connects) / "socket")) == number


def test_the_two_ends_of_a_fifo_meet_within_the_volume_only(served: Mounted) -> None:
    os.mkfifo(served.mountpoint / "fifo")
    with opened(served.mountpoint / "fifo", os.O_RDONLY | os.O_NONBLOCK):
        host_end = served.source / "fifo"
        refused(errno.ENXIO, lambda: os.open(host_end, os.O_WRONLY | os.O_NONBLOCK))
        with opened(served.mountpoint / "fifo", os.O_WRONLY | os.O_NONBLOCK):
            pass


def test_flock_on_a_directory_is_not_seen_on_the_host(served: Mounted) -> None:
    """flock(2) on a file is seen with session=kernel, session/test_mounted_locks.py."""
    with (
        opened(served.source, os.O_RDONLY) as host,
        opened(served.mountpoint, os.O_RDONLY) as inside,
        opened(served.mountpoint, os.O_RDONLY) as other,
    ):
        fcntl.flock(host, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(inside, fcntl.LOCK_EX | fcntl.LOCK_NB)

        refused(errno.EAGAIN, lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))


def test_a_lease_in_the_volume_is_not_broken_by_the_host(served: Mounted) -> None:
    with opened(served.mountpoint / "file", os.O_RDONLY) as fd:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        with opened(served.source / "file", os.O_WRONLY | os.O_NONBLOCK):
            assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK


def test_a_program_that_runs_in_the_volume_can_be_overwritten_on_the_host(served: Mounted) -> None:
    copied("sleep", served.source / "program")
    with running(served.mountpoint / "program"):
        refused(errno.ETXTBSY, lambda: os.open(served.mountpoint / "program", os.O_WRONLY))
        with opened(served.source / "program", os.O_WRONLY):
            pass


def test_a_program_that_runs_on_the_host_cannot_be_overwritten_in_the_volume(
    served: Mounted,
) -> None:
    copied("sleep", served.source / "program")
    with running(served.source / "program"):
        refused(errno.ETXTBSY, lambda: os.open(served.mountpoint / "program", os.O_WRONLY))


def test_the_host_executes_a_program_once_the_volume_has_closed_it(served: Mounted) -> None:
    """The kernel answers close(2) before the worker has closed the host's file."""
    program = copied("true", served.mountpoint / "program")
    with opened(program, os.O_WRONLY):
        assert executed(served.source / "program") == errno.ETXTBSY
    deadline = time.monotonic() + CLOSED_S
    while executed(served.source / "program") == errno.ETXTBSY and time.monotonic() < deadline:
        time.sleep(POLL_S)

    assert executed(served.source / "program") == 0
