"""Wrappers of the system calls that reduce the view and the rights of a process.

syscalls.py has most calls that operations need. Most calls here affect the calling thread and the
threads that it starts later, so the process makes them while it has one thread. The exceptions are
`set_groups`, `EffectiveCapabilities` and `unshare(CLONE_FS)`, which also change one thread of
several. An OSError has the call's man page as its file name, which the error message shows.
"""

import ctypes
import os
from collections.abc import Mapping
from typing import Final

from passthrough.linux import syscalls

# unshare(2)
CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWNET: Final = 0x4000_0000

# open_tree(2), move_mount(2), fsopen(2), mount_setattr(2), mount(2)
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
OPEN_TREE_CLONE: Final = 1
MOVE_MOUNT_F_EMPTY_PATH: Final = 4
FSOPEN_CLOEXEC: Final = 1
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
FSMOUNT_CLOEXEC: Final = 1
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR__ATIME: Final = 0x70
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x0020_0000
# No file on the mount gives rights, no program of it runs, no device opens, no link is followed.
INERT: Final = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSYMFOLLOW
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19

# capabilities(7), PR_SET_SECUREBITS: uid 0 gives no capability, and the bits are locked
SECBITS_NOROOT: Final = 0b0011
SECBITS_NO_SETUID_FIXUP: Final = 0b1100
SECBITS_NO_KEEP_CAPS: Final = 0b0010_0000
SECBITS_NO_AMBIENT_RAISE: Final = 0b1100_0000

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_PR_GET_NAME: Final = 16
_NAME_BYTES: Final = 16
_PR_SET_SECCOMP: Final = 22
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_SECCOMP_MODE_FILTER: Final = 2
_CAPABILITY_VERSION_3: Final = 0x2008_0522
# The same numbers on every architecture.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_SYS_MOUNT_SETATTR: Final = 442
_SYS_PIDFD_GETFD: Final = 438

_NO_OPTIONS: Final[Mapping[bytes, bytes]] = {}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = (ctypes.c_int,) + (ctypes.c_ulong,) * 4
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.pivot_root.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
_libc.capget.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
_libc.capset.argtypes = (ctypes.c_void_p, ctypes.c_void_p)


class _MountAttributes(ctypes.Structure):
    """struct mount_attr, mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog, seccomp(2)."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)
    return result


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own, CLONE_NEW*, unshare(2).

    With CLONE_FS the thread gets a root directory, working directory and umask of its own.
    """
    _checked(_libc.unshare(flags), "unshare(2)")


def enter_namespaces(process_fd: int, flags: int) -> None:
    """Enter the namespaces CLONE_NEW* of the process of a process descriptor, setns(2)."""
    _checked(_libc.setns(process_fd, flags), "setns(2)")


def duplicate_of(process_fd: int, number: int) -> int:
    """Return a duplicate of a descriptor of another process, pidfd_getfd(2); the caller owns it."""
    words = (ctypes.c_int(process_fd), ctypes.c_int(number), ctypes.c_uint(0))
    return _checked(_libc.syscall(ctypes.c_long(_SYS_PIDFD_GETFD), *words), "pidfd_getfd(2)")


def die_with_parent(number: int) -> None:
    """Have the process get the signal *number* when its parent ends, PR_SET_PDEATHSIG; 0: none."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, number)


def clone_tree(dir_fd: int, path: bytes, *, recursive: bool) -> int:
    """Copy the mount at *path* into a detached tree, open_tree(2).

    Returns:
        The O_PATH descriptor of the tree. Unless the tree is attached, it ends with the last
        duplicate of the descriptor.
    """
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    words = (ctypes.c_int(dir_fd), ctypes.c_char_p(path), ctypes.c_uint(flags))
    return _checked(_libc.syscall(ctypes.c_long(_SYS_OPEN_TREE), *words), "open_tree(2)")


def new_tree(fstype: bytes) -> int:
    """Mount a file system without a source and options as a detached tree, fsmount(2).

    Returns:
        The O_PATH descriptor of the tree, as that of `clone_tree`.

    Raises:
        OSError: ENODEV if the kernel does not know *fstype*.
    """
    context_fd = new_file_system(fstype)
    try:
        mount = (ctypes.c_int(context_fd), ctypes.c_uint(FSMOUNT_CLOEXEC), ctypes.c_uint(0))
        return _checked(_libc.syscall(ctypes.c_long(_SYS_FSMOUNT), *mount), "fsmount(2)")
    finally:
        os.close(context_fd)


def new_file_system(fstype: bytes, options: Mapping[bytes, bytes] = _NO_OPTIONS) -> int:
    """Make a file system without a source that is mounted nowhere, fsopen(2) and fsconfig(2).

    Returns:
        Its descriptor, owned by the caller. Unless the file system is mounted, it ends with the
        last duplicate of the descriptor.

    Raises:
        OSError: ENODEV if the kernel does not know *fstype*.
    """
    words = (ctypes.c_char_p(fstype), ctypes.c_uint(FSOPEN_CLOEXEC))
    context_fd = _checked(_libc.syscall(ctypes.c_long(_SYS_FSOPEN), *words), "fsopen(2)")
    steps = [(FSCONFIG_SET_STRING, *option) for option in options.items()]
    try:
        for command, name, value in (*steps, (FSCONFIG_CMD_CREATE, None, None)):
            step = (
                *(ctypes.c_int(context_fd), ctypes.c_uint(command)),
                *(ctypes.c_char_p(name), ctypes.c_char_p(value), ctypes.c_int(0)),
            )
            _checked(_libc.syscall(ctypes.c_long(_SYS_FSCONFIG), *step), "fsconfig(2)")
    except BaseException:
        os.close(context_fd)
        raise
    return context_fd


def change_tree(tree_fd: int, attributes: int, propagation: int, *, cleared: int = 0) -> None:
    """Change the attributes and the propagation of every mount of a tree, mount_setattr(2).

    Clears MOUNT_ATTR_* of *cleared*, and sets those of *attributes*.
    """
    attr = _MountAttributes(attr_set=attributes, attr_clr=cleared, propagation=propagation)
    words = (
        *(ctypes.c_int(tree_fd), ctypes.c_char_p(b"")),
        *(ctypes.c_uint(AT_EMPTY_PATH | AT_RECURSIVE), ctypes.byref(attr)),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )
    _checked(_libc.syscall(ctypes.c_long(_SYS_MOUNT_SETATTR), *words), "mount_setattr(2)")


def attach_tree(tree_fd: int, target: bytes) -> None:
    """Attach a tree of `clone_tree` at *target*, move_mount(2)."""
    words = (
        *(ctypes.c_int(tree_fd), ctypes.c_char_p(b"")),
        *(ctypes.c_int(AT_FDCWD), ctypes.c_char_p(target)),
        ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
    )
    _checked(_libc.syscall(ctypes.c_long(_SYS_MOVE_MOUNT), *words), "move_mount(2)")


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """Make the mount at *new_root* the root, and move the old root to *put_old*, pivot_root(2)."""
    _checked(_libc.pivot_root(new_root, put_old), "pivot_root(2)")


def effective_capabilities() -> int:
    """Return the effective set, with the bit 1 << CAP_* for each capability, capget(2)."""
    header, data = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3), (ctypes.c_uint32 * 6)()
    _checked(_libc.capget(header, data), "capget(2)")
    return int(data[0]) | int(data[3]) << 32


def limit_capabilities(kept: int) -> None:
    """Drop all capabilities but *kept*, with the bit 1 << CAP_* for each, from every set.

    Empties the inheritable and ambient sets. The process gets no capability of *kept* that it
    lacks. No change of uid and no execve(2) restores a capability.
    """
    bits = (
        SECBITS_NOROOT | SECBITS_NO_SETUID_FIXUP | SECBITS_NO_KEEP_CAPS | SECBITS_NO_AMBIENT_RAISE
    )
    _prctl("PR_SET_SECUREBITS", syscalls.PR_SET_SECUREBITS, bits)
    _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    capability = 0
    while _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:  # to the last of this kernel
        if not kept >> capability & 1:
            _prctl("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, capability)
        capability += 1
    kept &= effective_capabilities()
    low, high = kept & 0xFFFF_FFFF, kept >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3)
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    _checked(_libc.capset(header, data), "capset(2)")


def forbid_new_privileges() -> None:
    """Let no program that this process executes gain privileges, PR_SET_NO_NEW_PRIVS."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def forbid_dumps() -> None:
    """Forbid core dumps, and ptrace(2) by processes of this user, PR_SET_DUMPABLE."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)


def filter_calls(program: bytes) -> None:
    """Filter each system call by *program*, an array of struct sock_filter, seccomp(2).

    Needs `forbid_new_privileges` before.
    """
    rules = _FilterProgram(len(program) // 8, program)
    _prctl("PR_SET_SECCOMP", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(rules))


def name_thread(name: bytes) -> None:
    """Set the name of the calling thread, which ps(1) shows; at most 15 bytes, PR_SET_NAME."""
    text = ctypes.create_string_buffer(name)
    _prctl("PR_SET_NAME", _PR_SET_NAME, ctypes.addressof(text))


def thread_name() -> bytes:
    """Return the name of the calling thread, PR_GET_NAME."""
    text = ctypes.create_string_buffer(_NAME_BYTES)
    _prctl("PR_GET_NAME", _PR_GET_NAME, ctypes.addressof(text))
    return text.value


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, PR_SET_CHILD_SUBREAPER of prctl(2)."""
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def load_unwinder() -> None:
    """Load libgcc, which the C library otherwise opens when it ends a thread."""
    ctypes.CDLL("libgcc_s.so.1")


def _prctl(name: str, *words: int) -> None:
    _checked(_libc.prctl(*words, *(0,) * (5 - len(words))), f"prctl(2) {name}")
