"""Files for tests: one of each kind, content without repetition, and the names of errors."""

import contextlib
import errno
import io
import os
import random
import socket
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough.linux.syscalls import renameat2


def make_file(path: Path) -> None:
    """Make an empty regular file; the path must be free."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def make_socket(path: Path) -> None:
    """Make a socket without a listener."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))


def make_hard_link(path: Path) -> None:
    """Make a second name of a file."""
    other = path.with_name("first name")
    other.touch()
    os.link(other, path)


MAKERS: dict[str, Callable[[Path], None]] = {
    "file": make_file,
    "file by mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o644),
    "directory": os.mkdir,
    "symlink": lambda path: path.symlink_to("target"),
    "fifo": os.mkfifo,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o644),
    "hard link": make_hard_link,
}
"""By kind, a function that makes such a file; the path must be free."""


@contextlib.contextmanager
def public_directory(above: str | None = None) -> Iterator[Path]:
    """Make a directory that every user may enter, unlike pytest's own, and remove it in the end."""
    with tempfile.TemporaryDirectory(prefix="passfs-", dir=above) as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


def open_file(path: Path, flags: int) -> int:
    """Open a file with exactly these flags; the caller closes it."""
    return os.open(path, flags, 0o644)


def rename_with(flags: int, old: Path, new: Path) -> None:
    """Rename with flags of renameat2(2)."""
    renameat2(-1, os.fsencode(old), -1, os.fsencode(new), flags)  # the paths are absolute


def owner(path: Path) -> tuple[int, int]:
    """Return uid and gid of a file; of a symlink, its own."""
    status = path.lstat()
    return status.st_uid, status.st_gid


def noise(size: int, seed: int = 1) -> bytes:
    """Return *size* bytes without repetition, the same for each call."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - data, not a secret


def refused(number: int, call: Callable[[], object]) -> None:
    """Assert that *call* fails with the error *number*."""
    with pytest.raises(OSError) as caught:
        call()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def outcome(call: Callable[..., object], *arguments: object) -> object:
    """Return what *call* returns, or the name of the error that it fails with.

    The name is the one that Python prefers: ENOTSUP, not EOPNOTSUPP.
    """
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def archive(name: str, content: bytes) -> bytes:
    """Return a tar archive of one file, as `docker cp` sends it."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return data.getvalue()
