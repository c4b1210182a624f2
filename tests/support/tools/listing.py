"""Directory listings as the kernel returns them, with buffers of any size: getdents64(2)."""

import ctypes
import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.tools.host_calls import getdents64

# struct linux_dirent64 up to the name: d_ino, d_off, d_reclen, d_type
RECORD = struct.Struct("=QqHB")


class Entry(NamedTuple):
    """One record of getdents64(2); *position* is where the next one begins."""

    name: str
    inode: int
    position: int
    kind: int


def entries_of(descriptor: int, *buffer_bytes: int) -> Iterator[Entry]:
    """Yield entries from the current position on, with buffers of the sizes given, in turn."""
    buffers = [ctypes.create_string_buffer(size) for size in buffer_bytes or (32_768,)]
    for buffer in itertools.cycle(buffers):
        filled = getdents64(descriptor, buffer)
        if not filled:
            return
        raw = buffer.raw
        start = 0
        while start < filled:
            inode, position, length, kind = RECORD.unpack_from(raw, start)
            name = raw[start + RECORD.size : start + length].split(b"\0", 1)[0]
            yield Entry(os.fsdecode(name), inode, position, kind)
            start += length


@contextmanager
def listing(directory: Path) -> Iterator[int]:
    """Open a directory for `entries_of`."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
