"""Counters of this process: memory with a control page, in which its sessions count."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from passthrough.core.counters import count_in
from passthrough.worker import control, counters


@contextmanager
def counting() -> Iterator[int]:
    """Count in new memory during the block, and yield its descriptor."""
    fd = control.make()
    memory = mmap.mmap(fd, counters.END)
    try:
        count_in(memory, counters.AT)
        yield fd
    finally:
        count_in(bytearray(counters.END), counters.AT)
        memory.close()
        os.close(fd)


def found(fd: int) -> counters.Counters:
    """Return the counters behind the control page *fd*."""
    present = counters.read(fd)
    assert present is not None
    return present


def numbers(fd: int) -> dict[str, int]:
    """Return the number of requests by operation."""
    return {name: each.requests for name, each in found(fd).operations.items()}
