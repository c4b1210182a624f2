"""Opening: creating, truncating, and open files without a name."""

import fcntl
import itertools
import mmap
import os
from pathlib import Path

import pytest

from tests.support.tools.callers import Caller, together
from tests.support.tools.files import noise, open_file

PAGE_BYTES = mmap.PAGESIZE


@pytest.mark.parametrize("by", ["path", "descriptor"])
def test_truncate(directory: Path, by: str) -> None:
    """A file is cut or extended to the size, with zeros for new bytes: truncate(2)."""
    path = directory / "file"
    content = noise(3 * PAGE_BYTES)
    path.write_bytes(content)
    descriptor = open_file(path, os.O_RDWR)
    target = path if by == "path" else descriptor
    try:
        assert os.pread(descriptor, 3 * PAGE_BYTES, 0) == content
        os.truncate(target, PAGE_BYTES + 5)
        assert path.stat().st_size == PAGE_BYTES + 5
        assert os.pread(descriptor, 3 * PAGE_BYTES, 0) == content[: PAGE_BYTES + 5]
        os.truncate(target, 3 * PAGE_BYTES)
        assert os.fstat(descriptor).st_size == 3 * PAGE_BYTES
    finally:
        os.close(descriptor)

    kept = PAGE_BYTES + 5
    assert path.read_bytes() == content[:kept] + bytes(3 * PAGE_BYTES - kept)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT])
def test_open_truncates(directory: Path, flags: int) -> None:
    """O_TRUNC empties the file and keeps its inode, also for open descriptors: open(2)."""
    path = directory / "file"
    path.write_bytes(noise(10_000))
    inode = path.stat().st_ino
    with path.open("rb", buffering=0) as reader:
        assert reader.read(1) == noise(10_000)[:1]
        os.close(open_file(path, flags | os.O_TRUNC))

        assert reader.read(10) == b""
        assert os.fstat(reader.fileno()).st_size == 0
    assert path.stat().st_ino == inode


def test_create_opens_an_existing_file(directory: Path) -> None:
    """O_CREAT alone opens an existing file and keeps its content and mode: open(2)."""
    path = directory / "file"
    path.write_text("kept")
    path.chmod(0o600)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o777))

    assert path.read_text() == "kept"
    assert path.stat().st_mode & 0o777 == 0o600


def test_exclusive_creation_has_one_winner(directory: Path, caller: Caller) -> None:
    """Of concurrent processes with O_EXCL one creates the file, all others get EEXIST: open(2)."""
    contenders, rounds = 4, 20

    def contend() -> list[int]:
        won = []
        for number in range(rounds):
            try:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
                os.close(open_file(directory / str(number), flags))
                won.append(number)
            except FileExistsError:
                pass
        return won

    wins = together(caller.start(contend) for _ in range(contenders))

    assert sorted(itertools.chain.from_iterable(wins)) == list(range(rounds))


def test_new_file_without_write_permission(directory: Path) -> None:
    """The mode applies to later opens only; the creating descriptor may write: open(2)."""
    descriptor = os.open(directory / "file", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o000)
    try:
        assert os.write(descriptor, b"written") == len(b"written")
        assert os.pread(descriptor, 10, 0) == b"written"
    finally:
        os.close(descriptor)

    assert (directory / "file").stat().st_size == len(b"written")


@pytest.mark.parametrize("how", ["unlinked", "replaced"])
def test_an_open_file_outlives_its_name(directory: Path, how: str) -> None:
    """A file without a name exists until its last descriptor is closed: unlink(2)."""
    path = directory / "file"
    path.write_bytes(b"content")
    descriptor = open_file(path, os.O_RDWR)
    try:
        if how == "unlinked":
            path.unlink()
        else:
            (directory / "new").touch()
            (directory / "new").rename(path)
        assert os.pread(descriptor, 10, 0) == b"content"
        os.pwrite(descriptor, b"C", 0)
        os.pwrite(descriptor, b"more", 100_000)
        os.ftruncate(descriptor, 100_002)
        os.fchmod(descriptor, 0o640)
        os.utime(descriptor, ns=(1, 2))
        os.fsync(descriptor)

        status = os.fstat(descriptor)
        assert (status.st_nlink, status.st_size) == (0, 100_002)
        assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o640, 2)
        assert os.pread(descriptor, 7, 0) == b"Content"
        assert os.pread(descriptor, 10, 100_000) == b"mo"
    finally:
        os.close(descriptor)


def test_an_open_file_without_a_name_opens_again(directory: Path) -> None:
    """An open file without a name can be opened again through /proc/self/fd: proc(5)."""
    path = directory / "file"
    path.write_bytes(b"content")
    descriptor = open_file(path, os.O_RDONLY)
    try:
        path.unlink()
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        try:
            os.pwrite(again, b"C", 0)
        finally:
            os.close(again)

        assert os.pread(descriptor, 10, 0) == b"Content"
    finally:
        os.close(descriptor)


@pytest.mark.libfuse_lacks(
    "O_APPEND and O_DIRECT set or cleared by fcntl(2) after opening",
    "the host's file keeps the flags of its open",
)
def test_appending_begins_with_fcntl(directory: Path, beneath: Path) -> None:
    """After fcntl(2) sets O_APPEND, each write is at the end, also if the host has moved it."""
    path = directory / "file"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        os.write(descriptor, b"begin ")
        with (beneath / "file").open("ab") as file:
            file.write(b"middle ")
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
        os.write(descriptor, b"end")
    finally:
        os.close(descriptor)

    assert (beneath / "file").read_bytes() == b"begin middle end"
