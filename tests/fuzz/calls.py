"""System calls that `os` lacks, for the fuzz test alone.

The test does not use passthrough/linux/syscalls.py: a mistake there would change both sides alike.
"""

import ctypes
import os
import struct
from collections.abc import Iterator

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
FALLOC_FL_KEEP_SIZE = 1
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100

NS_PER_S = 1_000_000_000
# struct linux_dirent64 up to its name: d_ino, d_off, d_reclen, d_type; getdents64(2)
_RECORD = struct.Struct("=QqHB")
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    """Rename below the working directory, renameat2(2)."""
    _checked(_libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, ctypes.c_uint(flags)))


def utimensat(file: bytes | int, atime_ns: int, mtime_ns: int, flags: int = 0) -> None:
    """Set the times of a path or a descriptor, utimensat(2).

    UTIME_NOW and UTIME_OMIT are passed on as such. As times they would be about 1 s after 1970; no
    test sets these times.
    """
    times = (ctypes.c_long * 4)(*_timespec(atime_ns), *_timespec(mtime_ns))
    if isinstance(file, int):
        _checked(_libc.futimens(file, times))
    else:
        _checked(_libc.utimensat(AT_FDCWD, file, times, flags))


def _timespec(ns: int) -> tuple[int, int]:
    return (0, ns) if ns in {UTIME_NOW, UTIME_OMIT} else divmod(ns, NS_PER_S)


def fallocate(fd: int, mode: int, offset: int, size: int) -> None:
    """Allocate space, fallocate(2)."""
    _checked(_libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(size)))


def getdents64(fd: int, size: int) -> list[tuple[bytes, int]]:
    """Return as many names as fit *size* bytes, with their DT_* types, getdents64(2)."""
    buffer = ctypes.create_string_buffer(size)
    filled = _checked(_libc.getdents64(fd, buffer, ctypes.c_size_t(size)))
    return list(_records(buffer.raw[:filled]))


def _records(data: bytes) -> Iterator[tuple[bytes, int]]:
    while data:
        _, _, length, kind = _RECORD.unpack_from(data)
        name = data[_RECORD.size : length]
        yield name[: name.index(b"\0")], kind
        data = data[length:]
