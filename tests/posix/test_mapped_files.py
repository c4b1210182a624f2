"""Shared maps of files with kernel passthrough: times, blocks, and the same content for all."""

import mmap
import os
import time
from pathlib import Path

import pytest

SIZE = 1 << 20
# A notification may follow the answer to close(2). Without one the kernel keeps attributes for 1 s.
NOTICED_S = 0.9
# If a round stalls for so long, the attributes expire and hide the fault. Not every round stalls.
ROUNDS = 4


def changed_and_allocated(path: Path) -> tuple[bool, bool]:
    """Return whether *path* has a new mtime, and whether it has blocks."""
    status = path.stat()
    return status.st_mtime > 1, status.st_blocks > 0


@pytest.mark.columns("control", "kernel-auto", "kernel-always", "kernel-never", "libfuse-auto")
def test_times_and_blocks_after_a_store_into_a_map(directory: Path) -> None:
    """After close(2) at the latest, stat(2) shows times and blocks of a store: mmap(2)."""
    for number in range(ROUNDS):
        path = directory / str(number)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(descriptor, SIZE)
        with mmap.mmap(descriptor, SIZE) as area:
            deadline = time.monotonic() + NOTICED_S
            os.utime(path, (1, 1))
            assert changed_and_allocated(path) == (False, False)
            area[:] = b"y" * SIZE
            area.flush()
        os.close(descriptor)
        while (found := changed_and_allocated(path)) != (True, True):
            assert time.monotonic() < deadline, found
            time.sleep(0.01)


@pytest.mark.privileged
@pytest.mark.columns(
    *("control", "kernel-auto", "kernel-always", "kernel-auto-passthrough-off", "libfuse-auto")
)
@pytest.mark.parametrize(
    ("mode", "flags"),
    [(0o644, 0), (0o4755, 0), (0o2755, 0), (0o644, os.O_DIRECT)],
    ids=["plain", "setuid", "setgid", "direct"],
)
def test_a_map_and_a_later_open_show_one_content(directory: Path, mode: int, flags: int) -> None:
    """A map outlives its descriptor, and a later open in another mode sees its stores: mmap(2)."""
    path = directory / "file"
    path.write_bytes(b"first".ljust(mmap.PAGESIZE, b"-"))
    descriptor = os.open(path, os.O_RDWR)
    area = mmap.mmap(descriptor, mmap.PAGESIZE)
    os.close(descriptor)
    path.chmod(mode)
    descriptor = os.open(path, os.O_RDWR | flags)
    try:
        with area, mmap.mmap(-1, mmap.PAGESIZE) as page:
            assert read(descriptor, page) == b"first"
            area[:5] = b"store"
            assert read(descriptor, page) == b"store"
            page[:5] = b"write"
            os.pwritev(descriptor, [page], 0)
            assert area[:5] == b"write"
            with mmap.mmap(descriptor, mmap.PAGESIZE) as other:
                assert other[:5] == b"write"
                area[:5] = b"again"
                assert other[:5] == read(descriptor, page) == b"again"
    finally:
        os.close(descriptor)
    assert path.read_bytes()[:5] == b"again"


def read(descriptor: int, page: mmap.mmap) -> bytes:
    """Return the first 5 bytes of a file, read into *page*, which is aligned for O_DIRECT."""
    os.preadv(descriptor, [page], 0)
    return page[:5]
