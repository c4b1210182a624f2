"""Idmapped mounts for the length of a block: mount_setattr(2), user_namespaces(7)."""

import contextlib
import ctypes
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

from passthrough.linux import privileges, syscalls

_MOUNT_ATTR_IDMAP = 0x0010_0000
_CLONE_NEWUSER = 0x1000_0000
_SYS_MOUNT_SETATTR = 442
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def idmapped(mount: Path, target: Path, inside: int, outside: int, count: int) -> Iterator[None]:
    """Show *mount* at *target*, with *count* ids of its files, from *inside* on, as *outside*.

    Raises: OSError, EINVAL if the file system has no idmapped mounts.
    """
    tree_fd = privileges.clone_tree(privileges.AT_FDCWD, os.fsencode(mount), recursive=False)
    try:
        with _user_namespace(f"{inside} {outside} {count}") as namespace_fd:
            attributes = struct.pack("4Q", _MOUNT_ATTR_IDMAP, 0, 0, namespace_fd)
            words = (ctypes.c_int(tree_fd), ctypes.c_char_p(b""))
            size = ctypes.c_size_t(len(attributes))
            flags = ctypes.c_uint(privileges.AT_EMPTY_PATH)
            if _libc.syscall(ctypes.c_long(_SYS_MOUNT_SETATTR), *words, flags, attributes, size):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), "mount_setattr(2)")
        target.mkdir(exist_ok=True)
        privileges.attach_tree(tree_fd, os.fsencode(target))
    finally:
        os.close(tree_fd)
    try:
        yield
    finally:
        syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)


@contextlib.contextmanager
def _user_namespace(id_map: str) -> Iterator[int]:
    """Yield the descriptor of a user namespace with this map of users and of groups."""
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            privileges.unshare(_CLONE_NEWUSER)
            os.write(told, b"1")
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(told)
        assert os.read(ready, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(id_map)
        namespace_fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
        try:
            yield namespace_fd
        finally:
            os.close(namespace_fd)
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
