"""Returns unused memory of the interpreter and the C library to the kernel.

Dictionaries never shrink, so core/inodes.py copies its tables when the kernel has forgotten most
inodes. Some megabytes stay, as many after a million files as after a hundred thousand: the
interpreter's allocator returns memory by the megabyte, and keeps a megabyte for a single object.

Measured with a limit of 1,024 descriptors and the `libfuse` session, on tmpfs: find(1) over
1,000,000 files took a worker from 35 MB (38 MB after a first walk over 20,000) to 410 MB. The
worker then had 530 open descriptors.
After the kernel's caches were dropped, the worker had 45 MB
(tests/passthrough/mounted/test_many_files.py, PASSFS_MANY_FILES=1000000).
"""

import ctypes
import gc
from typing import Final

_M_ARENA_MAX: Final = -8  # malloc.h

_libc = ctypes.CDLL(None)


def return_freed() -> None:
    """Return freed memory to the kernel; takes milliseconds.

    The interpreter keeps freed tuples and similar objects for reuse, and each of them keeps a
    megabyte of its allocator. A full collection frees them. The C library keeps pages until
    malloc_trim(3).
    """
    gc.collect()
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def use_one_arena() -> None:
    """Make the C library use one arena for all threads, mallopt(3), if it supports that.

    Otherwise each thread has an arena that never returns all of its memory. One arena costs
    nothing: the interpreter's lock lets only one thread allocate at a time.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)
