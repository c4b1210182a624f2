"""What interpreter and C library keep of memory that nobody uses, and how they give it back.

Dictionaries never shrink, so the tables of inodes are made anew when most inodes are forgotten.
Some megabytes stay, as many for a million files as for a hundred thousand: the interpreter's
allocator returns memory by the megabyte, and keeps one for a single object. With 1,024 descriptors
and the `libfuse` session, find(1) over 1,000,000 files on tmpfs took a worker from 35 MB (38 after
a first walk over 20,000) to 410 MB with 530 descriptors. After the kernel's caches were dropped, it
had 45 (tests/passthrough/mounted/test_many_files.py, PASSFS_MANY_FILES=1000000).
"""

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
