"""Mapped files, mmap(2): shared with the file, or private."""

import mmap
import os
import signal
from pathlib import Path

import pytest

from tests.support.tools.callers import Caller
from tests.support.tools.files import noise, open_file

PAGE_BYTES = mmap.PAGESIZE


def mapped(descriptor: int, size: int, **options: int) -> mmap.mmap:
    """Map the file. The caller may close the descriptor, because mmap duplicates it."""
    return mmap.mmap(descriptor, size, **options)


def test_shared_mapping_writes_the_file(directory: Path, caller: Caller) -> None:
    """Stores into a shared mapping are in the file after msync, for all processes: mmap(2)."""
    path = directory / "file"
    size = 3 * PAGE_BYTES + 100
    path.write_bytes(noise(size))
    descriptor = open_file(path, os.O_RDWR)
    with mapped(descriptor, size) as shared:
        os.close(descriptor)
        assert shared[:] == noise(size)
        shared[PAGE_BYTES - 2 : PAGE_BYTES + 2] = b"edge"
        shared[-3:] = b"end"
        shared.flush()

        assert caller.run(path.read_bytes) == shared[:]
    content = path.read_bytes()
    assert content[PAGE_BYTES - 2 : PAGE_BYTES + 2] == b"edge"
    assert content[-3:] == b"end"


def test_shared_mapping_sees_writes(directory: Path) -> None:
    """A shared mapping shows the bytes that write(2) puts into the file: mmap(2)."""
    path = directory / "file"
    path.write_bytes(bytes(2 * PAGE_BYTES))
    descriptor = open_file(path, os.O_RDWR)
    try:
        with mapped(descriptor, 2 * PAGE_BYTES) as shared:
            assert shared[PAGE_BYTES : PAGE_BYTES + 3] == bytes(3)
            os.pwrite(descriptor, b"new", PAGE_BYTES)
            assert shared[PAGE_BYTES : PAGE_BYTES + 3] == b"new"
    finally:
        os.close(descriptor)


def test_shared_mapping_of_two_processes(directory: Path, caller: Caller) -> None:
    """Processes that map one file share its memory: mmap(2)."""
    path = directory / "file"
    path.write_bytes(bytes(PAGE_BYTES))

    def store() -> None:
        descriptor = open_file(path, os.O_RDWR)
        with mapped(descriptor, PAGE_BYTES) as shared:
            os.close(descriptor)
            shared[:5] = b"hello"

    descriptor = open_file(path, os.O_RDWR)
    with mapped(descriptor, PAGE_BYTES) as shared:
        os.close(descriptor)
        caller.run(store)

        assert shared[:5] == b"hello"


def test_private_mapping_leaves_the_file_alone(directory: Path) -> None:
    """Stores into a private mapping never reach the file: mmap(2)."""
    path = directory / "file"
    path.write_bytes(noise(PAGE_BYTES))
    descriptor = open_file(path, os.O_RDONLY)
    with mapped(descriptor, PAGE_BYTES, access=mmap.ACCESS_COPY) as private:
        os.close(descriptor)
        private[:7] = b"private"

        assert private[:7] == b"private"
    assert path.read_bytes() == noise(PAGE_BYTES)


def test_mapping_of_a_file_without_name(directory: Path) -> None:
    """A mapping keeps the file after its name and all descriptors are gone: mmap(2)."""
    path = directory / "file"
    path.write_bytes(noise(PAGE_BYTES))
    descriptor = open_file(path, os.O_RDWR)
    with mapped(descriptor, PAGE_BYTES) as shared:
        os.close(descriptor)
        path.unlink()
        shared[:4] = b"gone"
        shared.flush()

        assert shared[:] == b"gone" + noise(PAGE_BYTES)[4:]


@pytest.mark.privileged
def test_mapping_beyond_the_end(directory: Path, caller: Caller) -> None:
    """An access to a page beyond the end of a truncated file raises SIGBUS: mmap(2)."""
    path = directory / "file"
    path.write_bytes(noise(2 * PAGE_BYTES))

    def touch() -> int:
        descriptor = open_file(path, os.O_RDWR)
        shared = mapped(descriptor, 2 * PAGE_BYTES)
        os.ftruncate(descriptor, 10)
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        return shared[PAGE_BYTES]

    with pytest.raises(ChildProcessError, match=f"status {signal.SIGBUS + 128}|{signal.SIGBUS}"):
        caller.run(touch)
