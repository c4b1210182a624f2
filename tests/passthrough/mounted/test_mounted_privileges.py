"""suid and sgid bits after a change of content, seen by stat(2) and by execve(2), as on the host.

Each change is done on the bare directory and through a mount. The two outcomes must be equal.
"""

import fcntl
import functools
import itertools
import mmap
import os
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.tools import host_calls
from tests.support.tools.callers import MEMBER, OTHER, ROOT, TEAM_GID, USER, Caller
from tests.support.tools.files import public_directory
from tests.support.tools.mounted import mounted
from tests.support.tools.rings import switched_for

pytestmark = pytest.mark.full

LIMIT_S = 120.0
BLOCK = 4096
PROGRAM = Path("/usr/bin/id")
OWNER = Caller("owner", OTHER.uid, TEAM_GID)
PUNCHED = host_calls.FALLOC_FL_PUNCH_HOLE | host_calls.FALLOC_FL_KEEP_SIZE


class Outcome(NamedTuple):
    """The file's mode afterwards, and the effective user id with which USER runs the file."""

    mode: int
    euid: str


class File(NamedTuple):
    """An open program; its last blocks have no meaning, so a test may change them."""

    path: Path
    fd: int
    size: int

    @property
    def tail(self) -> int:
        """The offset of the last block."""
        return self.size - BLOCK


def put(file: File) -> None:
    os.pwrite(file.fd, b"x", file.tail)


def put_with_dsync(file: File) -> None:
    os.pwritev(file.fd, [b"x"], file.tail, os.RWF_DSYNC)


def put_directly(file: File) -> None:
    fcntl.fcntl(file.fd, fcntl.F_SETFL, os.O_DIRECT)
    with mmap.mmap(-1, BLOCK) as block:
        os.pwrite(file.fd, block, file.tail)


def opened_directly(file: File) -> None:
    fd = os.open(file.path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, BLOCK) as block:
        os.pwrite(fd, block, file.tail)
    os.close(fd)


def append(file: File) -> None:
    fd = os.open(file.path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"x")
    os.close(fd)


def store(file: File) -> None:
    with mmap.mmap(file.fd, file.size) as mapped:
        mapped[file.tail] = 1
        mapped.flush()


def truncate_on_opening(file: File) -> None:
    content = os.pread(file.fd, file.size, 0)
    fd = os.open(file.path, os.O_RDWR | os.O_TRUNC)
    os.pwrite(fd, content, 0)
    os.close(fd)


def only_truncate_on_opening(file: File) -> None:
    os.close(os.open(file.path, os.O_WRONLY | os.O_TRUNC))


def copy(file: File) -> None:
    os.copy_file_range(file.fd, file.fd, BLOCK, 0, file.tail)


def send(file: File) -> None:
    source = os.open(PROGRAM, os.O_RDONLY)
    os.lseek(file.fd, file.tail, os.SEEK_SET)
    os.sendfile(file.fd, source, 0, 100)
    os.close(source)


def allocate(mode: int, blocks: int = 1) -> Callable[[File], None]:
    return lambda file: host_calls.fallocate(file.fd, mode, file.tail - BLOCK, BLOCK * blocks)


WAYS: dict[str, Callable[[File], object]] = {
    "write": put,
    "write with RWF_DSYNC": put_with_dsync,
    "write after F_SETFL O_DIRECT": put_directly,
    "write with O_DIRECT": opened_directly,
    "append": append,
    "sendfile": send,
    "store into a map": store,
    "truncate": lambda file: os.truncate(file.path, file.tail),
    "truncate to the same size": lambda file: os.truncate(file.path, file.size),
    "ftruncate": lambda file: os.ftruncate(file.fd, file.tail),
    "open with O_TRUNC and write": truncate_on_opening,
    "open with O_TRUNC": only_truncate_on_opening,
    "copy_file_range": copy,
}
RANGES: dict[str, Callable[[File], object]] = {
    "fallocate": allocate(0, 4),
    "fallocate and keep the size": allocate(host_calls.FALLOC_FL_KEEP_SIZE, 4),
    "punch a hole": allocate(PUNCHED),
    "zero a range": allocate(host_calls.FALLOC_FL_ZERO_RANGE),
}

# Root loses bits by these changes if a file passes through, and got the bits while it was open.
LOSING = {
    *("write", "write with RWF_DSYNC", "write after F_SETFL O_DIRECT", "append", "sendfile"),
    "open with O_TRUNC and write",
}

CHANGES = [
    *((0o4777, caller) for caller in (USER, OWNER, ROOT)),
    *((0o6777, caller) for caller in (USER, MEMBER, ROOT)),
    *((0o2666, caller) for caller in (USER, OWNER, ROOT)),
    (0o6666, OWNER),
]
COLUMNS: Mapping[str, Mapping[str, str]] = {
    f"{session}-{cache}" + "".join(f"-{key}-{value}" for key, value in more.items()): {
        "session": session,
        "cache": cache,
        "suid": "true",
        **more,
    }
    for session, cache, more in (
        ("kernel", "auto", {}),
        ("kernel", "always", {}),
        ("kernel", "auto", {"passthrough": "off"}),
        ("kernel", "always", {"passthrough": "off"}),
        ("kernel", "always", {"passthrough": "off", "writeback": "on"}),
        ("kernel", "always", {"no_open": "on"}),
        ("kernel", "always", {"passthrough": "off", "transport": "io_uring"}),
        ("kernel", "always", {"killpriv_v2": "off"}),
        ("kernel", "always", {"killpriv_v2": "off", "passthrough": "off"}),
        ("libfuse", "auto", {}),
        ("libfuse", "always", {}),
    )
}


def runs_as(path: Path) -> str:
    """Return the effective user id that the program at *path* prints, or the name of the error."""
    try:
        return subprocess.run([path, "-u"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return type(error).__name__


def outcome(
    top: Path, way: Callable[[File], object], mode: int, caller: Caller, *, opened_before: bool
) -> Outcome:
    """Let *caller* change a program of *mode*; *opened_before* the program got that mode."""
    path = top / "program"
    content = PROGRAM.read_bytes()
    size = (len(content) // BLOCK + 4) * BLOCK
    path.write_bytes(content.ljust(size, b"\0"))
    os.chown(path, OWNER.uid, OWNER.gid)
    path.chmod(0o777)
    held = os.open(path, os.O_RDWR) if opened_before else -1
    path.chmod(mode)
    path.stat()  # the kernel caches the mode

    def change() -> None:
        fd = held if opened_before else os.open(path, os.O_RDWR)
        way(File(path, fd, size))
        os.close(fd)

    try:
        caller.run(change)
    finally:
        if opened_before:
            os.close(held)
    # Run before stat(2): stat(2) fetches new times, and with them the mode; execve(2) does not.
    euid = USER.run(functools.partial(runs_as, path)) if mode & stat.S_IXUSR else ""
    left = path.stat().st_mode
    path.unlink()
    return Outcome(stat.S_IMODE(left), euid)


@functools.cache
def bare(way: str, mode: int, caller: Caller, *, opened_before: bool) -> Outcome:
    with public_directory("/var/tmp") as top:
        return outcome(top, (WAYS | RANGES)[way], mode, caller, opened_before=opened_before)


def passes_through(options: Mapping[str, str]) -> bool:
    return options["session"] == "kernel" and not {"passthrough", "no_open"} & options.keys()


@pytest.mark.parametrize("way", [*WAYS, *RANGES])
def test_a_change_by_another_user_clears_the_bits_on_the_host(way: str) -> None:
    """The test below compares with these outcomes, so the bits must be cleared here."""
    kept = way == "store into a map"
    for opened_before in (False, True):
        left = bare(way, 0o4777, USER, opened_before=opened_before)
        assert left.mode == (0o4777 if kept else 0o777)
        if way != "open with O_TRUNC":
            assert left.euid == f"{OWNER.uid if kept else USER.uid}\n"
        assert bare(way, 0o4777, ROOT, opened_before=opened_before).mode == 0o4777
        assert bare(way, 0o2666, OWNER, opened_before=opened_before).mode == 0o2666


@pytest.mark.slow
@pytest.mark.parametrize("column", COLUMNS)
def test_bits_are_cleared_and_kept_as_on_the_host(column: str) -> None:
    options = COLUMNS[column]
    ways = WAYS | (RANGES if options["session"] == "kernel" else {})
    differing = {}
    lost = set()
    with (
        public_directory("/var/tmp") as base,
        switched_for(options),
        mounted(base, options) as served,
        served.limited(LIMIT_S),
    ):
        for name, way in ways.items():
            for (mode, caller), before in itertools.product(CHANGES, (False, True)):
                gone = Outcome(mode & 0o777, f"{USER.uid}\n")
                right = bare(name, mode, caller, opened_before=before)
                got = outcome(served.mountpoint, way, mode, caller, opened_before=before)
                if caller is ROOT and not before and got == gone:
                    # The kernel does not wait until a file that it has closed is closed here, too.
                    got = outcome(served.mountpoint, way, mode, caller, opened_before=before)
                if caller is ROOT and before and got == gone != right:
                    lost.add(name)
                elif got != right:
                    differing[name, oct(mode), caller.name, before] = (got, right)
    assert not differing, "\n".join(f"{key}: {value}" for key, value in differing.items())
    # Root writes through the worker's descriptor, which was opened without CAP_FSETID.
    assert lost == (LOSING if passes_through(options) else set())
