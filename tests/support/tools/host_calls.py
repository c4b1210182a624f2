"""Numbers and system calls that `os` lacks, for tests alone."""

import ctypes
import os
import struct

# rename(2)
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
# utimensat(2): special values of tv_nsec
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
# fallocate(2)
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_COLLAPSE_RANGE = 0x08
FALLOC_FL_ZERO_RANGE = 0x10
FALLOC_FL_INSERT_RANGE = 0x20
FALLOC_FL_UNSHARE_RANGE = 0x40
# ioctl_iflags(2) and FS_IOC_FSGETXATTR(2const): the same numbers on every architecture but alpha,
# mips, powerpc and sparc. The numbers of FLAGS contain the size of `long`; the calls pass an `int`.
FS_IOC_GETFLAGS = 0x8008_6601
FS_IOC_SETFLAGS = 0x4008_6602
FS_IOC_FSGETXATTR = 0x801C_581F
FS_IOC_FSSETXATTR = 0x401C_5820
LAST_BYTE = (1 << 63) - 1
"""The last byte that a lock can cover; a lock up to it has no end, fcntl_locking(2)."""

_AT_FDCWD = -100
_TIMES = struct.Struct("@llll")  # two struct timespec, utimensat(2)
_CAPABILITY_VERSION_3 = 0x2008_0522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.getdents64.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_libc.getdents64.restype = ctypes.c_ssize_t
for _name in ("setfsuid", "setfsgid"):
    getattr(_libc, _name).argtypes = (ctypes.c_uint,)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change the allocation of a range of a file by FALLOC_FL_* *mode*, fallocate(2)."""
    _checked(_libc.fallocate(fd, mode, offset, length))


def getdents64(fd: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Read directory entries into *buffer*, getdents64(2); return the number of bytes filled."""
    return _checked(_libc.getdents64(fd, buffer, len(buffer)))


def utimensat(path: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Set the times of *path*, each (seconds, nanoseconds), following symlinks, utimensat(2)."""
    _checked(_libc.utimensat(_AT_FDCWD, path, _TIMES.pack(*atime, *mtime), 0))


def setfsuid(uid: int) -> None:
    """Set the calling thread's file system uid, setfsuid(2)."""
    _libc.setfsuid(uid)


def setfsgid(gid: int) -> None:
    """Set the calling thread's file system gid, setfsgid(2)."""
    _libc.setfsgid(gid)


def raise_capability(number: int) -> None:
    """Add a capability, CAP_*, to the calling thread's effective set, capset(2).

    Raises:
        OSError: EPERM, the capability is not in the permitted set.
    """
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    _checked(_libc.capget(header, sets))
    sets[number // 32 * 3] |= 1 << number % 32
    _checked(_libc.capset(header, sets))
