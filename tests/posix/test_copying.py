"""Copies of many bytes, by each system call that moves them."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools.files import noise, open_file

MEBIBYTE = 1 << 20


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_by_sendfile(source: int, target: int, size: int) -> int:
    """Copy up to *size* bytes with sendfile(2)."""
    return os.sendfile(target, source, None, size)


def copy_by_range(source: int, target: int, size: int) -> int:
    """Copy up to *size* bytes with copy_file_range(2)."""
    return os.copy_file_range(source, target, size)


def copy_by_splice(source: int, target: int, size: int) -> int:
    """Copy up to *size* bytes with splice(2), through a pipe."""
    reader, writer = os.pipe()
    try:
        moved = os.splice(source, writer, min(size, 1 << 16))
        left = moved
        while left:
            left -= os.splice(reader, target, left)
        return moved
    finally:
        os.close(reader)
        os.close(writer)


def copy_by_read(source: int, target: int, size: int) -> int:
    """Copy up to *size* bytes by reading and writing."""
    return os.write(target, os.read(source, min(size, 100_001)))


@pytest.mark.parametrize(
    "copy",
    [copy_by_sendfile, copy_by_range, copy_by_splice, copy_by_read],
    ids=lambda f: f.__name__,
)
def test_copy_of_many_bytes(directory: Path, copy: Callable[[int, int, int], int]) -> None:
    """A copy of 8 MiB has every byte, by each system call: sendfile(2), splice(2)."""
    size = 8 * MEBIBYTE
    source, target = directory / "source", directory / "target"
    source.write_bytes(noise(size))
    left = size
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        while left:
            moved = copy(reader.fileno(), writer.fileno(), left)
            assert moved > 0
            left -= moved
        assert copy(reader.fileno(), writer.fileno(), 1) == 0

    assert target.stat().st_size == size
    assert digest(target) == digest(source) == hashlib.sha256(noise(size)).hexdigest()


def test_copy_within_a_file(directory: Path) -> None:
    """copy_file_range copies between places of one file: copy_file_range(2)."""
    path = directory / "file"
    path.write_bytes(noise(100_000))
    descriptor = open_file(path, os.O_RDWR)
    try:
        assert os.copy_file_range(descriptor, descriptor, 1000, 10, 150_000) == 1000
    finally:
        os.close(descriptor)

    assert path.read_bytes() == noise(100_000) + bytes(50_000) + noise(100_000)[10:1010]


def test_copy_by_programs(directory: Path) -> None:
    """Cp and shutil, which use the fast system calls, copy every byte."""
    source = directory / "source"
    source.write_bytes(noise(3 * MEBIBYTE + 7))
    subprocess.run(["cp", source, directory / "by cp"], check=True, timeout=60)
    shutil.copyfile(source, directory / "by shutil")

    assert digest(directory / "by cp") == digest(directory / "by shutil") == digest(source)
