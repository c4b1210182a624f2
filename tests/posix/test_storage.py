"""Data on the disk and its layout: sync, direct access, allocation, holes, file flags."""

import errno
import fcntl
import mmap
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools.callers import USER
from tests.support.tools.files import noise, open_file

BLOCK_BYTES = 4096  # a multiple of the logical block of any disk in use


MEBIBYTE = 1 << 20


@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync], ids=["fsync", "fdatasync"])
def test_sync(directory: Path, beneath: Path, sync: Callable[[int], None]) -> None:
    """A file and a directory can be synced; the data is then in the host's file: fsync(2)."""
    descriptor = open_file(directory / "file", os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, noise(100_000))
        sync(descriptor)
        assert (beneath / "file").read_bytes() == noise(100_000)
    finally:
        os.close(descriptor)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC], ids=["sync", "dsync"])
def test_synchronous_writes(directory: Path, beneath: Path, flag: int) -> None:
    """With O_SYNC or O_DSYNC the data is in the host's file when write returns: open(2)."""
    descriptor = open_file(directory / "file", os.O_WRONLY | os.O_CREAT | flag)
    try:
        os.write(descriptor, b"written")
        assert (beneath / "file").read_bytes() == b"written"
    finally:
        os.close(descriptor)


def test_direct_io(directory: Path) -> None:
    """Aligned reads and writes work with O_DIRECT; other descriptors see the bytes: open(2)."""
    path = directory / "file"
    size = 64 * BLOCK_BYTES
    content = noise(size)
    with mmap.mmap(-1, size) as aligned:
        aligned[:] = content
        descriptor = open_file(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        try:
            assert os.pwritev(descriptor, [aligned], BLOCK_BYTES) == size
            assert path.read_bytes() == bytes(BLOCK_BYTES) + content
            aligned[:] = bytes(size)
            assert os.preadv(descriptor, [aligned], BLOCK_BYTES) == size
            assert aligned[:] == content
        finally:
            os.close(descriptor)


def test_direct_io_switched_on_later(directory: Path) -> None:
    """O_DIRECT can be set on an open file: fcntl(2)."""
    path = directory / "file"
    path.write_bytes(noise(4 * BLOCK_BYTES))
    descriptor = open_file(path, os.O_RDWR)
    try:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        with mmap.mmap(-1, BLOCK_BYTES) as aligned:
            assert os.preadv(descriptor, [aligned], BLOCK_BYTES) == BLOCK_BYTES
            assert aligned[:] == noise(4 * BLOCK_BYTES)[BLOCK_BYTES : 2 * BLOCK_BYTES]
    finally:
        os.close(descriptor)


def test_allocation_grows_the_file(directory: Path) -> None:
    """Reserving space grows the file and keeps its content: posix_fallocate(3)."""
    path = directory / "file"
    path.write_bytes(b"content")
    descriptor = open_file(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 3, 200_000)
        status = os.fstat(descriptor)
        os.posix_fallocate(descriptor, 0, 10)
    finally:
        os.close(descriptor)

    assert status.st_size == path.stat().st_size == 200_003
    assert path.read_bytes() == b"content".ljust(200_003, b"\0")


@pytest.mark.libfuse_lacks(
    "fallocate(2)", "EOPNOTSUPP; posix_fallocate(3) writes zeros in its place"
)
@pytest.mark.parametrize(
    ("option", "size", "content"),
    [
        ("--keep-size", 8192, b"x" * 8192),
        ("--punch-hole", 8192, b"x" * 4096 + bytes(4096)),
    ],
)
def test_allocation_modes(directory: Path, option: str, size: int, content: bytes) -> None:
    """Space is allocated beyond the end, or freed inside, with the same size: fallocate(2)."""
    path = directory / "file"
    path.write_bytes(b"x" * 8192)
    length = "8192" if option == "--keep-size" else "4096"
    subprocess.run(
        ["fallocate", option, "--offset", "4096", "--length", length, path], check=True, timeout=60
    )

    assert path.stat().st_size == size
    assert path.read_bytes() == content


def test_holes_are_found_or_reported_as_data(directory: Path) -> None:
    """No data is reported as a hole, and a seek beyond the end fails with ENXIO: lseek(2)."""
    path = directory / "file"
    size = 4 * MEBIBYTE
    descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(descriptor, b"data", 2 * MEBIBYTE)
        os.ftruncate(descriptor, size)
        start = os.lseek(descriptor, 0, os.SEEK_DATA)
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        with pytest.raises(OSError) as caught:
            os.lseek(descriptor, size, os.SEEK_DATA)
    finally:
        os.close(descriptor)

    assert start <= 2 * MEBIBYTE < end <= size
    assert caught.value.errno == errno.ENXIO


@pytest.mark.columns(
    *("control", "control-user", "kernel-auto", "kernel-auto-user", "kernel-always"),
    *("kernel-never", "kernel-auto-handles-mandatory", "libfuse-auto"),
)
@pytest.mark.libfuse_lacks("SEEK_DATA and SEEK_HOLE of lseek(2)", "the whole file is data")
def test_holes_are_found(directory: Path) -> None:
    """A range that was never written is a hole of a file with passthrough: lseek(2)."""
    descriptor = open_file(directory / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(descriptor, b"data", 2 * MEBIBYTE)
        os.ftruncate(descriptor, 4 * MEBIBYTE)
        os.fsync(descriptor)
        assert os.lseek(descriptor, 0, os.SEEK_DATA) == 2 * MEBIBYTE
        assert os.lseek(descriptor, 2 * MEBIBYTE, os.SEEK_HOLE) == 2 * MEBIBYTE + 4096
    finally:
        os.close(descriptor)


@pytest.mark.libfuse_lacks("ioctl(2) for file flags and project ids", "ENOTTY")
def test_file_flags(directory: Path, beneath: Path) -> None:
    """The owner sets and clears the flags of files and directories: ioctl_iflags(2)."""
    (directory / "file").touch()
    (directory / "dir").mkdir()
    for name in ("file", "dir"):
        subprocess.run(["chattr", "+d", directory / name], check=True, timeout=60)
        for top in (directory, beneath):
            shown = subprocess.run(
                ["lsattr", "-d", top / name], check=True, capture_output=True, timeout=60
            )
            assert b"d" in shown.stdout.split()[0]


@pytest.mark.privileged
def test_only_the_owner_sets_file_flags(directory: Path) -> None:
    """Write permission is not enough to set flags; only the owner may: ioctl_iflags(2)."""
    (directory / "file").touch()
    (directory / "file").chmod(0o666)
    directory.chmod(0o755)

    def change() -> int:
        done = subprocess.run(
            ["chattr", "+d", directory / "file"], check=False, stderr=subprocess.DEVNULL
        )
        return done.returncode

    assert USER.run(change) != 0


@pytest.mark.libfuse_lacks("the time of birth in statx(2)", "absent")
def test_the_time_of_birth(directory: Path, beneath: Path) -> None:
    """A file has a time of birth, which never changes: statx(2)."""
    (directory / "file").touch()
    os.utime(directory / "file", (1, 1))
    births = [
        subprocess.run(["stat", "-c", "%.9W", top / "file"], check=True, capture_output=True)
        for top in (directory, beneath)
    ]

    assert births[0].stdout == births[1].stdout
    assert float(births[0].stdout) > 1
