"""Wrappers of the system calls that `os` lacks.

Every wrapper raises OSError with the kernel's errno. The core makes its own calls.
"""

import ctypes
import os
import struct
from typing import Final

# mount(2) and umount2(2)
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_NOATIME: Final = 1 << 10
MS_NODIRATIME: Final = 1 << 11
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

# openat2(2)
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

# rename(2)
RENAME_NOREPLACE: Final = 1

# fanotify_init(2)
FAN_REPORT_DFID_NAME: Final = 0xC00
_FAN_CLOEXEC: Final = 1

# prctl(2) and capabilities(7)
PR_SET_SECUREBITS: Final = 28
SECBIT_NO_SETUID_FIXUP: Final = 1 << 2

_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
# statx(2): the requested field, and its offset in struct statx
_STATX_MNT_ID: Final = 0x1000
_Statx: Final = ctypes.c_char * 256  # one type: create_string_buffer makes a type for each call
_STX_MNT_ID: Final = struct.Struct("=144xQ")
# name_to_handle_at(2): struct file_handle has a head (length of the bytes, type) and bytes
_HANDLE_HEAD: Final = 8
_LONGEST_HANDLE: Final = 128  # MAX_HANDLE_SZ
# More than the size of struct statfs. On 64-bit machines its first word is f_type.
_STATFS_WORDS: Final = 32
_SYS_OPENAT2: Final = 437  # the same number on every architecture

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how, openat2(2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class _HandleAnswer(ctypes.Structure):
    """struct file_handle of the largest size, and the mount id, name_to_handle_at(2)."""

    _fields_ = (
        ("length", ctypes.c_uint),
        ("type", ctypes.c_int),
        ("bytes", ctypes.c_ubyte * _LONGEST_HANDLE),
        ("mount", ctypes.c_int),
    )


_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.renameat2.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)
_libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.name_to_handle_at.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int,
)
_libc.statx.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_void_p,
)
_libc.fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
_libc.prctl.argtypes = (ctypes.c_int,) + (ctypes.c_ulong,) * 4


def _failed(*names: bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), *(os.fsdecode(name) for name in names[:1]))


def mount(source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes) -> None:
    """Mount a file system, mount(2).

    Raises:
        OSError: as the kernel reports it, with *target* as its file name.
    """
    if _libc.mount(source, target, fstype, flags, data) < 0:
        raise _failed(target)


def umount2(target: bytes, flags: int) -> None:
    """Unmount the uppermost mount at *target*, umount2(2).

    Raises:
        OSError: EINVAL if *target* is not a mount point.
    """
    if _libc.umount2(target, flags) < 0:
        raise _failed(target)


def openat2(dir_fd: int, path: bytes, flags: int, resolve: int) -> int:
    """Open *path* below *dir_fd* under the RESOLVE_* rules of *resolve*, openat2(2).

    Returns:
        A descriptor that the caller owns, close-on-exec.

    Raises:
        OSError: as the kernel reports it; EXDEV or ELOOP if *resolve* forbids the path.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    fd = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(path),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if fd < 0:
        raise _failed(path)
    return int(fd)


def renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """Rename with RENAME_* *flags*, renameat2(2).

    Raises:
        OSError: as the kernel reports it; EINVAL if the host's file system lacks a flag.
    """
    if _libc.renameat2(old_dir, old, new_dir, new, flags) < 0:
        raise _failed(old)


def name_to_handle_at(fd: int) -> tuple[int, bytes]:
    """Return the mount id and the file handle of the file behind *fd*, name_to_handle_at(2).

    The handle is the whole struct file_handle, as `open_by_handle_at` takes it. Two handles of one
    mount are equal if and only if they name the same file, also if an inode number is reused.

    Raises:
        OSError: EOPNOTSUPP if the file system has no file handles that can be opened.
    """
    answer = _HandleAnswer()
    answer.length = _LONGEST_HANDLE
    where = ctypes.addressof(answer)
    mount_at = where + _HandleAnswer.mount.offset
    if _libc.name_to_handle_at(fd, b"", where, mount_at, _AT_EMPTY_PATH) < 0:
        raise _failed()
    size = _HANDLE_HEAD + answer.length
    return answer.mount, ctypes.string_at(where, size)


def open_by_handle_at(mount_fd: int, handle: bytes, flags: int) -> int:
    """Open the file of a file handle, open_by_handle_at(2).

    *mount_fd* is any descriptor on the handle's mount that was opened without O_PATH.

    Returns:
        A descriptor that the caller owns, close-on-exec.

    Raises:
        OSError: ESTALE if the file is gone; EPERM without CAP_DAC_READ_SEARCH.
    """
    fd: int = _libc.open_by_handle_at(mount_fd, handle, flags | os.O_CLOEXEC)
    if fd < 0:
        raise _failed()
    return fd


def mount_id(fd: int) -> int:
    """Return the id of the mount that the file behind *fd* lies on, as in mountinfo, statx(2).

    AT_STATX_DONT_SYNC: a file system that hangs does not block the call.

    Raises:
        OSError: as the kernel reports it.
    """
    answer = _Statx()
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    if _libc.statx(fd, b"", flags, _STATX_MNT_ID, answer) < 0:
        raise _failed()
    number: int = _STX_MNT_ID.unpack_from(answer)[0]
    return number


def fanotify_init(flags: int) -> int:
    """Open a group of fanotify(7) for notifications, fanotify_init(2); the caller owns it.

    Raises:
        OSError: ENOSYS or EINVAL if the kernel lacks it, EPERM without CAP_SYS_ADMIN.
    """
    fd: int = _libc.fanotify_init(flags | _FAN_CLOEXEC, os.O_RDONLY | os.O_CLOEXEC)
    if fd < 0:
        raise _failed()
    return fd


def filesystem_type(fd: int) -> int:
    """Return the f_type of the file system that *fd* lies on, linux/magic.h, fstatfs(2).

    Raises:
        OSError: as the kernel reports it.
    """
    answer = (ctypes.c_long * _STATFS_WORDS)()
    if _libc.fstatfs(fd, answer) < 0:
        raise _failed()
    return answer[0]


def set_securebits(bits: int) -> None:
    """Set the calling thread's securebits, prctl(2) PR_SET_SECUREBITS; children inherit them.

    Raises:
        OSError: EPERM without CAP_SETPCAP.
    """
    if _libc.prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) < 0:
        raise _failed()
