"""Reading and writing: at an offset, at the end of the file, by several processes at once."""

import errno
import fcntl
import functools
import itertools
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools.callers import Caller, together
from tests.support.tools.files import noise, open_file

PAGE_BYTES = mmap.PAGESIZE


MEBIBYTE = 1 << 20


@pytest.mark.parametrize("offset", [0, 1, PAGE_BYTES - 1, 131_072, (5 << 30) + 3])
def test_write_and_read_at_an_offset(directory: Path, offset: int) -> None:
    """Bytes written at an offset are read from there, after a hole of zeros: pwrite(2)."""
    for size in (1, 4095, PAGE_BYTES, 4097, MEBIBYTE + 1):
        path, content = directory / str(size), noise(size)
        descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            assert os.pwrite(descriptor, content, offset) == size
            assert os.fstat(descriptor).st_size == offset + size
            assert os.pread(descriptor, size, offset) == content
            assert os.pread(descriptor, 10, offset + size) == b""
        finally:
            os.close(descriptor)

        before = min(offset, MEBIBYTE)
        with path.open("rb") as file:
            file.seek(offset - before)
            assert file.read() == bytes(before) + content


def test_overwriting_keeps_all_other_bytes(directory: Path) -> None:
    """A write changes the bytes of its range and no others: write(2)."""
    path = directory / "file"
    expected = bytearray(noise(300_000))
    path.write_bytes(expected)
    places = random.Random(2)  # noqa: S311 - data, not a secret
    descriptor = open_file(path, os.O_RDWR)
    try:
        for number in range(200):
            offset = places.randrange(len(expected) - 5000)
            piece = noise(places.randrange(1, 5000), number)
            os.pwrite(descriptor, piece, offset)
            expected[offset : offset + len(piece)] = piece
            assert os.pread(descriptor, 6000, offset) == expected[offset : offset + 6000]
    finally:
        os.close(descriptor)

    assert path.read_bytes() == expected


def test_position_moves(directory: Path) -> None:
    """A read or write starts where the last one ended, or at the position of lseek(2)."""
    with (directory / "file").open("wb+", buffering=0) as file:
        file.write(b"one")
        file.write(b"two")
        assert file.tell() == len(b"onetwo")
        file.seek(1)
        assert file.read(3) == b"net"
        assert file.read() == b"wo"
        assert file.read() == b""
        assert file.seek(-3, os.SEEK_END) == 3


def test_vectored_reads_and_writes(directory: Path) -> None:
    """Several buffers are written and read in order, as one: readv(2)."""
    pieces = [noise(size, size) for size in (1, 4096, 70_000, 0, 13)]
    total = sum(map(len, pieces))
    descriptor = open_file(directory / "file", os.O_RDWR | os.O_CREAT)
    try:
        assert os.pwritev(descriptor, pieces, 5) == total
        buffers = [bytearray(total - 10), bytearray(10)]
        assert os.preadv(descriptor, buffers, 5) == total
    finally:
        os.close(descriptor)

    assert b"".join(buffers) == b"".join(pieces)


@pytest.mark.parametrize(
    ("flags", "call", "number"),
    [
        (os.O_WRONLY, lambda descriptor: os.read(descriptor, 1), errno.EBADF),
        (os.O_RDONLY, lambda descriptor: os.write(descriptor, b"x"), errno.EBADF),
        (os.O_RDONLY, lambda descriptor: os.ftruncate(descriptor, 1), errno.EINVAL),
        (os.O_RDWR, lambda descriptor: os.ftruncate(descriptor, -1), errno.EINVAL),
        (os.O_RDWR, lambda descriptor: os.pread(descriptor, 1, -1), errno.EINVAL),
        (os.O_RDWR, lambda descriptor: os.lseek(descriptor, -1, os.SEEK_SET), errno.EINVAL),
    ],
    ids=[
        "read write-only",
        "write read-only",
        "truncate read-only",
        "truncate below zero",
        "read before start",
        "seek before start",
    ],
)
def test_refusals(directory: Path, flags: int, call: Callable[[int], object], number: int) -> None:
    """A descriptor allows only its access mode: read(2), write(2), ftruncate(2)."""
    (directory / "file").write_text("content")
    descriptor = open_file(directory / "file", flags)
    try:
        with pytest.raises(OSError) as caught:
            call(descriptor)
    finally:
        os.close(descriptor)

    assert caught.value.errno == number
    assert (directory / "file").read_text() == "content"


def test_reading_a_directory(directory: Path) -> None:
    """A directory has no bytes to read, EISDIR: read(2)."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            os.read(descriptor, 1)
    finally:
        os.close(descriptor)


def test_write_is_seen_by_another_descriptor(directory: Path) -> None:
    """A read after a write returns the written bytes, through any descriptor: write(2)."""
    path = directory / "file"
    path.write_bytes(b"old " * 2000)
    writer, reader = open_file(path, os.O_WRONLY), open_file(path, os.O_RDONLY)
    try:
        assert os.pread(reader, 8, 4096) == b"old old "
        os.pwrite(writer, b"new ", 4096)
        assert os.pread(reader, 8, 4096) == b"new old "
        os.pwrite(writer, b"end", 8000)
        assert os.fstat(reader).st_size == 8003
        assert path.stat().st_size == 8003
        assert os.pread(reader, 10, 8000) == b"end"
    finally:
        os.close(writer)
        os.close(reader)


def test_write_is_seen_by_another_process(directory: Path, caller: Caller) -> None:
    """A process reads bytes of another one, before and after the file is closed: write(2)."""
    path = directory / "file"
    descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        os.write(descriptor, b"before")
        assert caller.run(path.read_bytes) == b"before"
        caller.run(lambda: path.write_bytes(b"from the other"))

        assert os.pread(descriptor, 100, 0) == b"from the other"
    finally:
        os.close(descriptor)
    assert path.read_bytes() == b"from the other"


def test_append_by_several_processes(directory: Path, caller: Caller) -> None:
    """With O_APPEND each write appends all its bytes at the current end of the file: open(2)."""
    path = directory / "log"
    processes, records = 4, 150

    def append(process: int) -> None:
        descriptor = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for record in range(records):
            os.write(descriptor, f"{process}:{record}".ljust(70, ".").encode() + b"\n")
        os.close(descriptor)

    together(caller.start(functools.partial(append, number)) for number in range(processes))

    expected = {
        f"{process}:{record}".ljust(70, ".")
        for process, record in itertools.product(range(processes), range(records))
    }
    lines = path.read_text().splitlines()
    assert len(lines) == processes * records
    assert set(lines) == expected


def test_append_through_two_descriptors(directory: Path) -> None:
    """O_APPEND writes at the current end, which other descriptors may have moved: open(2)."""
    path = directory / "file"
    first = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    second = open_file(path, os.O_WRONLY)
    try:
        os.write(first, b"one ")
        os.pwrite(second, b"two ", 4)
        os.write(first, b"three")
        # Linux ignores the offset for a file with O_APPEND: pwrite(2), BUGS.
        os.pwrite(first, b"!", 0)
    finally:
        os.close(first)
        os.close(second)

    assert path.read_bytes() == b"one two three!"


def test_append_after_growth_beneath(directory: Path, beneath: Path) -> None:
    """O_APPEND writes at the end of the file, even if the host has moved the end: open(2)."""
    descriptor = open_file(directory / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, b"one ")
        with (beneath / "file").open("ab") as file:
            file.write(b"two ")
        os.write(descriptor, b"three")
    finally:
        os.close(descriptor)

    assert (beneath / "file").read_bytes() == b"one two three"


def test_append_switched_on_later(directory: Path) -> None:
    """O_APPEND can be set on an open file, for all later writes: fcntl(2)."""
    path = directory / "file"
    descriptor = open_file(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, b"content")
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, b"+")
    finally:
        os.close(descriptor)

    assert path.read_bytes() == b"content+"


def test_processes_write_parts_of_one_file(directory: Path, caller: Caller) -> None:
    """Concurrent writes to different ranges of one file do not disturb each other: write(2)."""
    path = directory / "file"
    part_bytes, parts = 100_003, 4
    path.touch()

    def write(part: int) -> None:
        content = noise(part_bytes, part)
        descriptor = open_file(path, os.O_WRONLY)
        for start in range(0, part_bytes, 7001):
            os.pwrite(descriptor, content[start : start + 7001], part * part_bytes + start)
        os.close(descriptor)

    together(caller.start(functools.partial(write, part)) for part in range(parts))

    assert path.read_bytes() == b"".join(noise(part_bytes, part) for part in range(parts))
