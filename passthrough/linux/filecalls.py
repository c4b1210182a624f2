"""Wrappers of the system calls on single files that `os` and `fcntl` lack.

Every wrapper raises OSError with the kernel's errno, and releases the interpreter's lock. If a
signal comes, a wrapper that waits for a lock fails with EINTR, so that another thread can interrupt
the wait (core/waiting.py). The functions of `fcntl` would wait again.
"""

import ctypes
import fcntl
import os
import struct
from typing import Final, NamedTuple

# fallocate(2)
FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_COLLAPSE_RANGE: Final = 0x08
FALLOC_FL_ZERO_RANGE: Final = 0x10
FALLOC_FL_INSERT_RANGE: Final = 0x20
FALLOC_FL_UNSHARE_RANGE: Final = 0x40

# ioctl_iflags(2) and FS_IOC_FSGETXATTR(2const): the same numbers on every architecture but alpha,
# mips, powerpc and sparc. The numbers of FLAGS contain the size of `long`; the calls pass an `int`.
FS_IOC_GETFLAGS: Final = 0x8008_6601
FS_IOC_SETFLAGS: Final = 0x4008_6602
FS_IOC_FSGETXATTR: Final = 0x801C_581F
FS_IOC_FSSETXATTR: Final = 0x401C_5820

# The last byte that a lock can cover; a lock up to it has no end, fcntl_locking(2).
LAST_BYTE: Final = (1 << 63) - 1

_AT_EMPTY_PATH: Final = 0x1000
_AT_EACCESS: Final = 0x200
_AT_FDCWD: Final = -100
_SYS_FACCESSAT2: Final = 439  # the same number on every architecture
_STATX_BTIME: Final = 0x0800
_Statx: Final = ctypes.c_char * 256  # one type: create_string_buffer makes a type for each call
_STX_MASK: Final = struct.Struct("=I")
_STX_BTIME: Final = struct.Struct("=80xqI")  # struct statx, statx(2)
_FLOCK: Final = struct.Struct("@hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fcntl.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_char_p)
_libc.flock.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.statx.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_char_p,
)
_libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.syscall.restype = ctypes.c_long
_libc.siginterrupt.argtypes = (ctypes.c_int, ctypes.c_int)


class Lock(NamedTuple):
    """A lock on bytes of a file, fcntl_locking(2)."""

    kind: int
    """F_RDLCK, F_WRLCK or F_UNLCK."""
    start: int
    end: int
    """The last byte, included; `LAST_BYTE` for a lock without end."""
    pid: int = 0
    """The process that holds the lock; 0 or less if it is unknown."""


NO_LOCK: Final = Lock(fcntl.F_UNLCK, 0, LAST_BYTE)
"""Removes every lock."""


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change the allocation of a range of a file by FALLOC_FL_* *mode*, fallocate(2)."""
    _checked(_libc.fallocate(fd, mode, offset, length))


def syncfs(fd: int) -> None:
    """Write the file system of *fd*, no O_PATH descriptor, to stable storage, syncfs(2)."""
    _checked(_libc.syncfs(fd))


def birth_time(fd: int) -> tuple[int, int] | None:
    """Return the birth time in seconds and nanoseconds, statx(2); None if the file has none."""
    answer = _Statx()
    _checked(_libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, answer))
    (mask,) = _STX_MASK.unpack_from(answer)
    if not mask & _STATX_BTIME:
        return None
    seconds, nanoseconds = _STX_BTIME.unpack_from(answer)
    return seconds, nanoseconds


def may_access(path: bytes, mask: int) -> bool:
    """Return whether the calling thread has the rights *mask* (R_OK and so on) to *path*.

    faccessat2(2) with AT_EACCESS checks the file system ids and the effective capabilities.
    """
    words = (
        *(ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(path)),
        *(ctypes.c_int(mask), ctypes.c_int(_AT_EACCESS)),
    )
    try:
        _checked(_libc.syscall(ctypes.c_long(_SYS_FACCESSAT2), *words))
    except PermissionError:
        return False
    return True


def set_lock(fd: int, lock: Lock) -> None:
    """Set or clear a lock of *fd*'s open file description, F_OFD_SETLK.

    Raises:
        OSError: EAGAIN, another lock conflicts.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _packed(lock))


def wait_for_lock(fd: int, lock: Lock) -> None:
    """Set a lock of *fd*'s open file description; wait for conflicting locks, F_OFD_SETLKW.

    Raises:
        OSError: EINTR, a signal came.
    """
    _checked(_libc.fcntl(fd, fcntl.F_OFD_SETLKW, _packed(lock)))


def conflicting_lock(fd: int, lock: Lock) -> Lock | None:
    """Return the first lock that conflicts with *lock* of *fd*, or None, F_OFD_GETLK."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _packed(lock))
    kind, _, start, length, pid = _FLOCK.unpack(answer)
    if kind == fcntl.F_UNLCK:
        return None
    return Lock(kind, start, start + length - 1 if length else LAST_BYTE, pid)


def wait_for_flock(fd: int, operation: int) -> None:
    """Lock the whole file, LOCK_SH or LOCK_EX; wait for conflicting locks, flock(2).

    Raises:
        OSError: EINTR, a signal came.
    """
    _checked(_libc.flock(fd, operation))


def interrupt_calls_on(number: int) -> None:
    """Make signal *number* interrupt system calls with EINTR, without other effect, sigaction(2).

    A handler of the interpreter would wake the main thread.
    """
    # The handler must accept a number and do nothing: abs(3).
    _libc.signal(number, ctypes.cast(_libc.abs, ctypes.c_void_p))
    _checked(_libc.siginterrupt(number, 1))


def _packed(lock: Lock) -> bytes:
    length = 0 if lock.end >= LAST_BYTE else lock.end - lock.start + 1
    return _FLOCK.pack(lock.kind, os.SEEK_SET, lock.start, length, 0)
