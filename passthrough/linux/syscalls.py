"""Wrappers of the system calls that `os` lacks.

The calls on single open files are in filecalls.py. Every wrapper raises OSError with the kernel's
errno. Calls that can block release the interpreter's lock (`_libc`). Calls that never block keep it
(`_libc_held`), because releasing the lock takes longer than these calls.
"""

import ctypes
import errno
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
MOUNT_POINT: Final = -1
"""Returned in place of a descriptor: the name is a mount point."""

# rename(2)
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4

# utimensat(2): special values of tv_nsec
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2

# prctl(2) and capabilities(7)
PR_SET_SECUREBITS: Final = 28
SECBIT_NO_SETUID_FIXUP: Final = 1 << 2
CAP_FOWNER: Final = 3
CAP_FSETID: Final = 4

_AT_FDCWD: Final = -100
_TIMES: Final = struct.Struct("@llll")  # two struct timespec, utimensat(2)
_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
# statx(2): the requested field, and its offset in struct statx
_STATX_MNT_ID: Final = 0x1000
_Statx: Final = ctypes.c_char * 256  # one type: create_string_buffer makes a type for each call
_STX_MNT_ID: Final = struct.Struct("=144xQ")
# name_to_handle_at(2): struct file_handle has a head (length of the bytes, type) and bytes
_HANDLE_HEAD: Final = 8
_LONGEST_HANDLE: Final = 128  # MAX_HANDLE_SZ
_CAPABILITY_VERSION_3: Final = 0x2008_0522
# More than the size of struct statfs. On 64-bit machines its first word is f_type.
_STATFS_WORDS: Final = 32
_SYS_OPENAT2: Final = 437  # the same number on every architecture

_libc = ctypes.CDLL(None, use_errno=True)
_libc_held = ctypes.PyDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how, openat2(2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


# The arguments of `open_same_mount`.
_OPENAT2_WORD: Final = ctypes.c_long(_SYS_OPENAT2)
_SAME_MOUNT_HOW: Final = _OpenHow(os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, RESOLVE_NO_XDEV)
_SAME_MOUNT: Final = ctypes.byref(_SAME_MOUNT_HOW)
_SAME_MOUNT_SIZE: Final = ctypes.c_size_t(ctypes.sizeof(_SAME_MOUNT_HOW))


class _HandleAnswer(ctypes.Structure):
    """struct file_handle of the largest size, and the mount id, name_to_handle_at(2)."""

    _fields_ = (
        ("length", ctypes.c_uint),
        ("type", ctypes.c_int),
        ("bytes", ctypes.c_ubyte * _LONGEST_HANDLE),
        ("mount", ctypes.c_int),
    )


class _CapabilityHeader(ctypes.Structure):
    """struct __user_cap_header_struct, capset(2)."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    """struct __user_cap_data_struct, capset(2); version 3 takes two, for 64 capabilities."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_OWN_CAPABILITIES: Final = ctypes.byref(_CapabilityHeader(_CAPABILITY_VERSION_3, 0))

# utimensat, capget and capset have no declared types: their arguments are C objects already, and a
# check by ctypes took half as long as the call.
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
_libc.getdents64.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_libc.getdents64.restype = ctypes.c_ssize_t
_libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc_held.setfsuid.argtypes = (ctypes.c_uint,)
_libc_held.setfsuid.restype = ctypes.c_uint
_libc_held.setfsgid.argtypes = (ctypes.c_uint,)
_libc_held.setfsgid.restype = ctypes.c_uint
_libc_held.name_to_handle_at.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int,
)
_libc_held.statx.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_void_p,
)
_libc_held.prctl.argtypes = (ctypes.c_int,) + (ctypes.c_ulong,) * 4


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


def open_same_mount(dir_fd: int, name: bytes) -> int:
    """Open *name* in *dir_fd* with O_PATH, unless it is a mount point, openat2(2).

    Opens a symlink itself. Every lookup makes this call, so that it builds no C objects: the C
    library's variadic syscall(2) takes Python's values as they are, in less time than os.open.

    Returns:
        A descriptor that the caller owns, close-on-exec; `MOUNT_POINT` if *name* is one.

    Raises:
        OSError: as the kernel reports it, without the name.
    """
    fd: int = _libc.syscall(_OPENAT2_WORD, dir_fd, name, _SAME_MOUNT, _SAME_MOUNT_SIZE)
    if fd >= 0:
        return fd
    number = ctypes.get_errno()
    if number == errno.EXDEV:
        return MOUNT_POINT
    raise OSError(number, os.strerror(number))


def renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """Rename with RENAME_* *flags*, renameat2(2).

    Raises:
        OSError: as the kernel reports it; EINVAL if the host's file system lacks a flag.
    """
    if _libc.renameat2(old_dir, old, new_dir, new, flags) < 0:
        raise _failed(old)


def getdents64(fd: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Read directory entries of *fd* into *buffer*, getdents64(2).

    Returns:
        The number of bytes filled; 0 at the end of the directory.

    Raises:
        OSError: as the kernel reports it.
    """
    size: int = _libc.getdents64(fd, buffer, len(buffer))
    if size < 0:
        raise _failed()
    return size


def utimensat(path: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Set access and modification time of *path*, following symlinks, utimensat(2).

    Each time is (seconds, nanoseconds); nanoseconds may be UTIME_NOW or UTIME_OMIT.

    Raises:
        OSError: as the kernel reports it.
    """
    if _libc.utimensat(_AT_FDCWD, path, _TIMES.pack(*atime, *mtime), 0) < 0:
        raise _failed(path)


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
    if _libc_held.name_to_handle_at(fd, b"", where, mount_at, _AT_EMPTY_PATH) < 0:
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
    if _libc_held.statx(fd, b"", flags, _STATX_MNT_ID, answer) < 0:
        raise _failed()
    number: int = _STX_MNT_ID.unpack_from(answer)[0]
    return number


def filesystem_type(fd: int) -> int:
    """Return the f_type of the file system that *fd* lies on, linux/magic.h, fstatfs(2).

    Raises:
        OSError: as the kernel reports it.
    """
    answer = (ctypes.c_long * _STATFS_WORDS)()
    if _libc.fstatfs(fd, answer) < 0:
        raise _failed()
    return answer[0]


def setfsuid(uid: int) -> int:
    """Set the calling thread's file system uid, setfsuid(2).

    Unlike setresuid(2), which the C library applies to every thread, setfsuid(2) affects the
    calling thread alone.

    Returns:
        The uid before the call. The call reports no failure: only the return value of the next call
        shows whether it succeeded.
    """
    return int(_libc_held.setfsuid(uid))


def setfsgid(gid: int) -> int:
    """Set the calling thread's file system gid, setfsgid(2); returns the gid before the call."""
    return int(_libc_held.setfsgid(gid))


def set_securebits(bits: int) -> None:
    """Set the calling thread's securebits, prctl(2) PR_SET_SECUREBITS; children inherit them.

    Raises:
        OSError: EPERM without CAP_SETPCAP.
    """
    if _libc_held.prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) < 0:
        raise _failed()


class CapabilitySwitch:
    """Adds and removes capabilities (CAP_*) of a thread's effective set, capset(2).

    The constructor reads the other capabilities of the thread, so that each switch is a single
    system call.
    """

    __slots__ = ("_sets", "had")

    def __init__(self, *capabilities: int) -> None:
        """Read the calling thread's capabilities, capget(2)."""
        self._sets = ((_CapabilityData * 2)(), (_CapabilityData * 2)())  # by *wanted*
        for data in self._sets:
            if _libc_held.capget(_OWN_CAPABILITIES, data) < 0:
                raise _failed()
        self.had = True
        """True if all of *capabilities* were in the set."""
        for capability in capabilities:
            index, bit = capability // 32, 1 << capability % 32
            self.had = self.had and bool(self._sets[True][index].effective & bit)
            self._sets[False][index].effective &= ~bit
            self._sets[True][index].effective |= bit

    def set(self, *, wanted: bool) -> None:
        """Add the capabilities to the set, or remove them.

        Raises:
            OSError: EPERM if a capability is not in the permitted set.
        """
        if _libc_held.capset(_OWN_CAPABILITIES, self._sets[wanted]) < 0:
            raise _failed()
