"""What interpreter and C library keep of memory that nobody uses, and how they give it back."""

import ctypes
import gc
from typing import Final

_M_ARENA_MAX: Final = -8  # malloc.h

_libc = ctypes.CDLL(None)


def give_back() -> None:
    """Let go of what can be; takes milliseconds.

    The interpreter keeps freed tuples and the like for later, and each one keeps a megabyte of its
    allocator: a full collection lets them go. The C library keeps pages, malloc_trim(3).
    """
    gc.collect()
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def allocate_in_one_place() -> None:
    """Have the C library allocate for all threads in one arena, mallopt(3), where it can.

    Else it makes one for each of them, and each keeps some memory of its own for good. The
    interpreter's lock lets no two threads allocate at once anyway.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)
