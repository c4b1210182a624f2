"""The system calls that a worker makes to open and close one file, for each kind of source."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from tests.support.tools.callers import ROOT, USER, Caller
from tests.support.tools.disks import DISKS
from tests.support.tools.mounted import Mounted, mounted
from tests.support.tools.system_calls import counting

pytestmark = pytest.mark.full

LIMIT_S = 60.0
RELEASED_S = 1.0  # no caller waits for RELEASE
# Meanwhile a thread of the pool may begin, which makes other calls and is not counted.
ATTEMPTS = 5
# Without writev(2), which notifies the kernel: the pool of threads does so, too.
COUNTED = {"openat", "open_tree", "fstat", "ioctl", "close", "fcntl", "setfsuid", "setfsgid"}
# While the kernel remembers names and attributes, no other requests come.
REMEMBERED = dict.fromkeys(("attr_timeout", "entry_timeout", "dir_attr_timeout"), "60")
# The two calls of ioctl(2) make and drop the backing id; OPEN looks whether the file has a name.
OPENED = Counter(openat=1, fstat=1, ioctl=2, close=1)
CREATED = OPENED + Counter(open_tree=1)
# FLUSH and RELEASE look for stores into a shared map.
LOOKS = Counter(fstat=2)
# The host reports on close(2) of a second descriptor.
REPORTS = Counter(fcntl=1, close=1)
UNRESERVED = Counter(setfsuid=2)
# A new file belongs to its user; the backing id acts with the file's group.
AS_USER = Counter(setfsuid=2, setfsgid=2)
WITH_GROUP = Counter(setfsgid=3)


@contextlib.contextmanager
def memory(target: Path) -> Iterator[None]:
    syscalls.mount(b"none", os.fsencode(target), b"tmpfs", 0, b"")
    try:
        yield
    finally:
        syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)


@contextlib.contextmanager
def volume(base: Path, disk: str, **options: str) -> Iterator[Mounted]:
    """Serve a source on *disk*, with a file that is known, and open for all users."""
    source = base / "source"
    source.mkdir()
    usual = {"session": "kernel", "passthrough": "on", "posix_acl": "false", "locks": "local"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(memory(source) if disk == "tmpfs" else DISKS[disk](source))
        (source / "file").write_bytes(b"content")
        for path in (source, source / "file"):
            path.chmod(0o777)
        served = stack.enter_context(mounted(base, usual | REMEMBERED | options))
        stack.enter_context(served.limited(LIMIT_S))
        yield served


Way = tuple[str, int]
"""The name and the flags of an open(2)."""
READ: Way = ("file", os.O_RDONLY)
WRITE: Way = ("file", os.O_WRONLY)
CREATE: Way = ("new", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
CHANGE: Way = ("file", os.O_RDWR)

Case = tuple[str, dict[str, str], Caller, Way, Counter[str]]
CASES: dict[str, Case] = {
    "read": ("tmpfs", {}, ROOT, READ, OPENED),
    "write": ("tmpfs", {}, ROOT, WRITE, OPENED),
    "create": ("tmpfs", {}, ROOT, CREATE, CREATED),
    "create, locks=host": ("tmpfs", {"locks": "host"}, ROOT, CREATE, CREATED),
    "change": ("tmpfs", {}, ROOT, CHANGE, OPENED + LOOKS),
    "read by a user": ("tmpfs", {}, USER, READ, OPENED),
    "create by a user": ("tmpfs", {}, USER, CREATE, CREATED + AS_USER + WITH_GROUP),
    "read, ext4": ("ext4", {}, ROOT, READ, OPENED + UNRESERVED),
    "create, ext4": ("ext4", {}, ROOT, CREATE, CREATED),
    "read by a user, ext4": ("ext4", {}, USER, READ, OPENED + UNRESERVED),
    "create by a user, ext4": (
        *("ext4", {}, USER, CREATE),
        CREATED + AS_USER + WITH_GROUP + UNRESERVED,
    ),
    "read, overlayfs": ("overlay", {}, ROOT, READ, OPENED + UNRESERVED),
    "create, overlayfs": ("overlay", {}, ROOT, CREATE, CREATED + REPORTS),
}


def use(path: Path, flags: int) -> None:
    fd = os.open(path, flags, 0o644)
    if flags & os.O_ACCMODE == os.O_RDONLY:
        os.read(fd, 100)
    else:
        os.write(fd, b"CONTENT")
    os.close(fd)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_calls_of_one_file(base: Path, case: Case) -> None:
    disk, options, caller, (name, flags), expected = case
    with volume(base, disk, **options) as served:
        for number in range(ATTEMPTS):
            for known in (served.mountpoint, served.mountpoint / "file"):
                known.stat()  # the attempt before may have changed it
            path = served.mountpoint / (f"{name}-{number}" if flags & os.O_CREAT else name)
            with counting(served.worker_pid, COUNTED) as calls:
                caller.run(partial(use, path, flags))
                deadline = time.monotonic() + RELEASED_S
                while calls() != expected and time.monotonic() < deadline:
                    os.sched_yield()
                found = calls()
            if found == expected:
                break

    assert found == expected
