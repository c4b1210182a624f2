"""SEEK_DATA and SEEK_HOLE of lseek(2): no data is reported as a hole."""

import mmap
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools.files import outcome

SIZE = 1 << 20
START, LENGTH = 204_800, 100_000


def write(descriptor: int) -> Callable[[], None]:
    """Write the data, and return a function that does nothing."""
    os.pwrite(descriptor, b"D" * LENGTH, START)
    return lambda: None


def store(descriptor: int) -> Callable[[], None]:
    """Store the data into a shared map, and return the function that closes the map."""
    area = mmap.mmap(descriptor, SIZE)
    area[START : START + LENGTH] = b"D" * LENGTH
    return area.close


@pytest.mark.privileged
@pytest.mark.columns(
    *("control", "kernel-auto", "kernel-auto-passthrough-off", "kernel-metadata"),
    *("kernel-auto-writeback", "libfuse-auto"),
)
@pytest.mark.parametrize(
    ("change", "mode"),
    [
        pytest.param(write, 0o644, id="write"),
        pytest.param(store, 0o644, id="store"),
        # A setuid file never has kernel passthrough.
        pytest.param(store, 0o4755, id="store-setuid"),
    ],
)
def test_data_of_an_open_file_is_found(
    directory: Path, change: Callable[[int], Callable[[], None]], mode: int
) -> None:
    """A process finds and copies data that another one has not yet written back: lseek(2)."""
    (directory / "file").touch()
    (directory / "file").chmod(mode)
    descriptor = os.open(directory / "file", os.O_RDWR | os.O_CREAT)
    reader = os.open(directory / "file", os.O_RDONLY)
    try:
        os.ftruncate(descriptor, SIZE)
        end = change(descriptor)
        start = outcome(os.lseek, reader, 0, os.SEEK_DATA)
        hole = outcome(os.lseek, reader, START, os.SEEK_HOLE)
        subprocess.run(["cp", directory / "file", directory / "copy"], check=True, timeout=60)
        copied = (directory / "copy").read_bytes().count(b"D")
        (directory / "copy").unlink()  # with writeback the host gets its times later
        end()
    finally:
        os.close(reader)
        os.close(descriptor)

    assert isinstance(start, int), start
    assert isinstance(hole, int), hole
    assert start <= START
    assert hole >= START + LENGTH
    assert copied == LENGTH


@pytest.mark.privileged
@pytest.mark.columns(
    *("kernel-auto-passthrough-off", "kernel-metadata", "kernel-auto-writeback", "libfuse-auto")
)
def test_a_file_without_passthrough_is_all_data(directory: Path) -> None:
    """SEEK_DATA returns the offset itself, because the worker cannot see the kernel's pages."""
    descriptor = os.open(directory / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(descriptor, SIZE)
        data = outcome(os.lseek, descriptor, START, os.SEEK_DATA)
        hole = outcome(os.lseek, descriptor, START, os.SEEK_HOLE)
        beyond = outcome(os.lseek, descriptor, SIZE, os.SEEK_DATA)
    finally:
        os.close(descriptor)

    assert (data, hole, beyond) == (START, SIZE, "ENXIO")
