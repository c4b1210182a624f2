"""Users' rights to files and directories: each operation with each kind of mode and owner.

A case is an object that root makes: a file in a directory that all users may write to, or a
directory with entries. Each operation runs on a new copy of each case. Its outcome is the result
for the caller, together with the state of the host afterwards.
"""

import errno
import fcntl
import os
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from passthrough.linux import syscalls
from tests.support.tools.host_calls import (
    FS_IOC_GETFLAGS,
    RENAME_EXCHANGE,
    UTIME_NOW,
    UTIME_OMIT,
    utimensat,
)

ANONYMOUS = 65_534
STRANGER = 41_900
SCRIPT = b"#!/bin/sh\nexit 7\n"
RUN_LIMIT_S = 10.0
# CAP_NET_RAW permitted and effective, struct vfs_cap_data of linux/capability.h.
NET_RAW = struct.pack("<IIIII", 0x0200_0001, 1 << 13, 0, 0, 0)
PERMISSIONS = range(8)
"""The rights of a class of users: read, write and execute in each combination."""

Operation = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Case:
    """A file or directory: its mode and its owner."""

    name: str
    mode: int
    uid: int
    gid: int
    sticky_entry: int = ANONYMOUS
    """The owner of the entries of a directory."""


def _classes(kind: str, extra: int = 0) -> Iterator[Case]:
    """Yield cases in which the anonymous user is owner, in the group, or neither."""
    for bits in PERMISSIONS:
        name = f"{kind} {extra:o} {bits}"
        yield Case(f"{name} as owner", extra | bits << 6, ANONYMOUS, STRANGER)
        yield Case(f"{name} as group", extra | bits << 3, STRANGER, ANONYMOUS)
        yield Case(f"{name} as other", extra | bits, STRANGER, STRANGER)


FILES = [
    *_classes("file"),
    Case("file suid of a stranger", 0o4777, STRANGER, STRANGER),
    Case("file sgid of a stranger", 0o2777, STRANGER, STRANGER),
    Case("file suid of its own", 0o4755, ANONYMOUS, ANONYMOUS),
    Case("file sgid of its own", 0o2775, ANONYMOUS, ANONYMOUS),
    Case("file sgid of its own in another group", 0o2775, ANONYMOUS, STRANGER),
    Case("file sgid of its own that is no program", 0o2666, ANONYMOUS, STRANGER),
    Case("file sgid of its group that is no program", 0o2666, STRANGER, ANONYMOUS),
    Case("file sgid of a stranger that is no program", 0o2666, STRANGER, STRANGER),
    Case("file with capabilities", 0o666, STRANGER, STRANGER),
    Case("private file with capabilities", 0o644, STRANGER, STRANGER),
    Case("file of root", 0o644, 0, 0),
    Case("private file of root", 0o600, 0, 0),
]
DIRECTORIES = [
    *_classes("directory"),
    Case("directory of root", 0o755, 0, 0),
    Case("directory sgid of a stranger", 0o2777, STRANGER, STRANGER),
    *(
        Case(f"sticky of {owner}, entries of {entries}", 0o1777, owner, owner, entries)
        for owner in (ANONYMOUS, STRANGER)
        for entries in (ANONYMOUS, STRANGER)
    ),
]


def opening(flags: int) -> Operation:
    """Return the operation that opens a file and closes it."""
    return lambda path: os.close(os.open(path, flags, 0o644))


def asking(mask: int) -> Operation:
    """Return the operation that asks access(2) about a right."""
    return lambda path: os.access(path, mask)


def executing(path: Path) -> int:
    """Execute a program and return its exit status."""
    return subprocess.run([path], check=False, capture_output=True, timeout=RUN_LIMIT_S).returncode


def truncating_open_file(path: Path) -> None:
    """Truncate a file through a descriptor."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(fd, 1)
    finally:
        os.close(fd)


def writing(path: Path) -> None:
    """Write through a descriptor, which clears suid and sgid bits."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, b"changed", 2)
    finally:
        os.close(fd)


def changing_open_file(path: Path) -> None:
    """Change mode and times through a descriptor."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fchmod(fd, 0o640)
        os.utime(fd)
    finally:
        os.close(fd)


def getting_flags(path: Path) -> int:
    """Return the size of a file's flags in bytes, ioctl_iflags(2)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return len(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))
    finally:
        os.close(fd)


def refusing_device(path: Path) -> bool:
    """Return whether making a device node is allowed; its errno depends on the order of checks."""
    try:
        os.mknod(path / "new", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        return False
    return True


def making_unnamed(path: Path) -> None:
    """Make a file without a name, and then link it to one."""
    fd = os.open(path, os.O_TMPFILE | os.O_RDWR, 0o644)
    try:
        os.write(fd, b"unnamed")
        # os.link follows the symlink in /proc if it has a directory descriptor.
        os.link(f"/proc/self/fd/{fd}", path / "named", src_dir_fd=fd)
    finally:
        os.close(fd)


def touching(path: Path, *, atime: int, mtime: int) -> None:
    """Set times by utimensat(2), each in seconds or a special value."""
    utimensat(os.fsencode(path), _time(atime), _time(mtime))


def _time(value: int) -> tuple[int, int]:
    special = {UTIME_NOW, UTIME_OMIT}
    return (0, value) if value in special else (value, 0)


def listing(path: Path) -> list[str]:
    """Return the names in a directory."""
    return sorted(os.listdir(path))


def listing_with_types(path: Path) -> list[tuple[str, bool]]:
    """Return the names in a directory, each with whether it is a directory."""
    with os.scandir(path) as entries:
        return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)


def beside(path: Path) -> Path:
    """Return another name in the directory of *path*."""
    return path.with_name("other")


def status(path: Path) -> tuple[int, ...]:
    """Return the fields of stat(2) that are equal for equal files in different places."""
    found = path.lstat()
    mode = found.st_mode & ~stat.S_ISVTX
    return mode, found.st_uid, found.st_gid, found.st_size if path.is_file() else 0


FILE_OPERATIONS: Mapping[str, Operation] = {
    "stat": status,
    "open to read": opening(os.O_RDONLY),
    "open to write": opening(os.O_WRONLY),
    "open for both": opening(os.O_RDWR),
    "open to append": opening(os.O_WRONLY | os.O_APPEND),
    "open and cut": opening(os.O_WRONLY | os.O_TRUNC),
    "open to read and cut": opening(os.O_RDONLY | os.O_TRUNC),
    "open or create": opening(os.O_RDWR | os.O_CREAT),
    "read": lambda path: path.read_bytes(),
    "write": writing,
    "truncate": lambda path: os.truncate(path, 3),
    "ftruncate": truncating_open_file,
    "execute": executing,
    "access F_OK": asking(os.F_OK),
    "access R_OK": asking(os.R_OK),
    "access W_OK": asking(os.W_OK),
    "access X_OK": asking(os.X_OK),
    "access all": asking(os.R_OK | os.W_OK | os.X_OK),
    "chmod": lambda path: path.chmod(0o751),
    "chmod suid": lambda path: path.chmod(0o4751),
    "chmod sgid": lambda path: path.chmod(0o2751),
    "fchmod": changing_open_file,
    "times now": os.utime,
    "times given": lambda path: touching(path, atime=1, mtime=2),
    "mtime given": lambda path: touching(path, atime=UTIME_OMIT, mtime=2),
    "mtime now": lambda path: touching(path, atime=UTIME_OMIT, mtime=UTIME_NOW),
    "get attribute": lambda path: os.getxattr(path, "user.test"),
    "list attributes": os.listxattr,
    "set attribute": lambda path: os.setxattr(path, "user.new", b"value"),
    "set trusted attribute": lambda path: os.setxattr(path, "trusted.new", b"value"),
    "remove attribute": lambda path: os.removexattr(path, "user.test"),
    "link": lambda path: os.link(path, beside(path)),
    "remove capabilities": lambda path: os.removexattr(path, "security.capability"),
    "change no owner": lambda path: os.chown(path, -1, -1),
    "rename": lambda path: os.rename(path, beside(path)),
    "unlink": lambda path: path.unlink(),
    "get flags": getting_flags,
}


DIRECTORY_OPERATIONS: Mapping[str, Operation] = {
    "stat": status,
    "list": listing,
    "list with types": listing_with_types,
    "look up": lambda path: status(path / "file"),
    "look up what is not there": lambda path: (path / "nothing").exists(),
    "list, then look up": lambda path: (listing_with_types(path), status(path / "file")),
    "list, then read": lambda path: (listing(path), (path / "file").read_bytes()),
    "read": lambda path: (path / "file").read_bytes(),
    "read link": lambda path: (path / "link").readlink(),
    "create": lambda path: (path / "new").write_bytes(b"new"),
    "make node": lambda path: os.mknod(path / "new", stat.S_IFREG | 0o600),
    "make fifo": lambda path: os.mkfifo(path / "new"),
    "make device": refusing_device,
    "make directory": lambda path: (path / "new").mkdir(),
    "make link": lambda path: (path / "new").symlink_to("target"),
    "make unnamed": making_unnamed,
    "hard link": lambda path: os.link(path / "file", path / "new"),
    "unlink": lambda path: (path / "file").unlink(),
    "remove directory": lambda path: (path / "directory").rmdir(),
    "remove itself": lambda path: path.rmdir(),
    "rename": lambda path: os.rename(path / "file", path / "new"),
    "rename over": lambda path: os.rename(path / "file", path / "link"),
    "rename out": lambda path: os.rename(path / "file", beside(path)),
    "rename itself": lambda path: os.rename(path, beside(path)),
    "exchange": lambda path: syscalls.renameat2(
        *(-100, os.fsencode(path / "file"), -100, os.fsencode(path / "link")),
        RENAME_EXCHANGE,
    ),
    "open existing or create": lambda path: opening(os.O_RDONLY | os.O_CREAT)(path / "file"),
    "chdir": os.chdir,
    "access R_OK": asking(os.R_OK),
    "access W_OK": asking(os.W_OK),
    "access X_OK": asking(os.X_OK),
    "chmod": lambda path: path.chmod(0o751),
    "chmod sgid": lambda path: path.chmod(0o2751),
    "times now": os.utime,
    "times given": lambda path: touching(path, atime=1, mtime=2),
    "set attribute": lambda path: os.setxattr(path, "user.new", b"value"),
}


READING: Final = frozenset(
    {
        *("stat", "open to read", "read", "execute", "get attribute", "list attributes"),
        *("access F_OK", "access R_OK", "access W_OK", "access X_OK", "access all"),
        *("get flags", "list", "list with types", "look up", "look up what is not there"),
        *("list, then look up", "list, then read", "read link", "chdir"),
    }
)
"""The operations that change nothing; they share one copy of each case."""


def place(number: int, operation: str) -> str:
    """Return the name of the directory in which *operation* runs on the case *number*."""
    return f"{number} {'reading' if operation in READING else operation}"


def make(top: Path, case: Case) -> None:
    """Make the directory *top*, and the case in it, as root."""
    top.mkdir()
    top.chmod(0o777)
    if case in FILES:
        path = top / "file"
        path.write_bytes(SCRIPT)
        os.setxattr(path, "user.test", b"value")
    else:
        path = top / "directory"
        path.mkdir()
        (path / "file").write_bytes(b"content")
        (path / "link").symlink_to("target")
        (path / "directory").mkdir()
        for name in ("file", "link", "directory"):
            os.chown(path / name, case.sticky_entry, case.sticky_entry, follow_symlinks=False)
    os.chown(path, case.uid, case.gid)
    path.chmod(case.mode)
    if "capabilities" in case.name:
        os.setxattr(path, "security.capability", NET_RAW)


def tried(top: Path, case: Case, operation: Operation) -> object:
    """Run *operation* on the case below *top*; return its result or the name of its error."""
    path = top / ("file" if case in FILES else "directory")
    try:
        return operation(path)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def left(top: Path) -> dict[str, object]:
    """Return modes, owners, contents and attributes of all files below *top*."""
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        state = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(state.st_mode) else b""
        attributes = () if path.is_symlink() else tuple(sorted(os.listxattr(path)))
        touched = state.st_mtime < 3, state.st_atime < 3
        owners = state.st_uid, state.st_gid
        found[str(path.relative_to(top))] = (
            *(oct(state.st_mode), owners, state.st_nlink, content, attributes, touched),
        )
    return found
