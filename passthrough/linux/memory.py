"""The memory that the C library allocates for threads."""

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8  # malloc.h

_libc = ctypes.CDLL(None)


def use_one_arena() -> None:
    """Make the C library use one arena for all threads, mallopt(3), if it supports that.

    Otherwise each thread has an arena that never returns all of its memory. Few requests allocate:
    the core keeps inodes and open files in memory of its own.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)
