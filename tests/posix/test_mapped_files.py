"""Shared maps of files that the kernel passes through: times, blocks, and one content for all."""

import mmap
import os
import time
from pathlib import Path

import pytest

SIZE = 1 << 20
# A notification may follow the answer to close(2); attributes stay known for 1 s and more.
NOTICED_S = 0.2
# In a stall of a second the kernel asks by itself; not in each of several rounds.
ROUNDS = 4


def told(path: Path) -> tuple[bool, bool]:
    """Return whether *path* shows that it was changed, and that it has blocks."""
    status = path.stat()
    return status.st_mtime > 1, status.st_blocks > 0


@pytest.mark.columns("control", "kernel-auto", "kernel-always", "kernel-never", "libfuse-auto")
@pytest.mark.fault(
    "stores into shared maps",
    "a store into a shared map that is passed through moves neither times nor blocks until"
    " attr_timeout has passed, with `cache=always` for a day",
    "kernel-auto",
    "kernel-always",
)
def test_times_and_blocks_after_a_store_into_a_map(directory: Path) -> None:
    """After close(2) at the latest, stat(2) shows what a store has changed: mmap(2)."""
    for number in range(ROUNDS):
        path = directory / str(number)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(descriptor, SIZE)
        with mmap.mmap(descriptor, SIZE) as area:
            os.utime(path, (1, 1))
            assert told(path) == (False, False)
            area[:] = b"y" * SIZE
            area.flush()
        os.close(descriptor)
        deadline = time.monotonic() + NOTICED_S
        while told(path) != (True, True) and time.monotonic() < deadline:
            time.sleep(NOTICED_S / 10)

        assert told(path) == (True, True)


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
    """A map outlives its descriptor, and a later open of another kind sees the same: mmap(2)."""
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
    """Return the first bytes of a file, through *page*, which lies as O_DIRECT wants it."""
    os.preadv(descriptor, [page], 0)
    return page[:5]
