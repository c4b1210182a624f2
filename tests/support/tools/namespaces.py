"""The mount namespace of a test run, apart from that of the machine: mount_namespaces(7)."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux import mountinfo, privileges, syscalls
from passthrough.linux.mountinfo import FSTYPE
from tests.support.tools.mounts import MS_PRIVATE, MS_REC

CLONE_FS = 0x200  # unshare(2)

CURRENT = Path("/proc/thread-self/ns/mnt")
REPOSITORY = Path(__file__).resolve().parents[3]

MACHINE = pytest.StashKey[int]()
"""In the stash of pytest's configuration: the descriptor of the machine's mount namespace."""

_libc = ctypes.CDLL(None, use_errno=True)


def leave_machine() -> int:
    """Move the calling thread, and the threads and processes it starts, into a new mount namespace.

    The namespace is private: mounts made on the machine later do not appear in it. It holds no
    passfs mount of the machine, which would otherwise stay in use until the test run ends.

    Returns:
        A descriptor of the mount namespace that the thread has left, for `entered`.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN.
    """
    machine = os.open(CURRENT, os.O_RDONLY)
    privileges.unshare(privileges.CLONE_NEWNS)
    syscalls.mount(b"none", b"/", b"none", MS_REC | MS_PRIVATE, b"")
    for mount in reversed(mountinfo.read()):
        # A checkout on a passfs volume stays within reach.
        if mount.fstype == FSTYPE and not mountinfo.is_below(bytes(REPOSITORY), mount.target):
            with contextlib.suppress(OSError):  # another mount covers it
                syscalls.umount2(mount.target, syscalls.MNT_DETACH)
    return machine


@contextlib.contextmanager
def entered(namespace: int) -> Iterator[None]:
    """Run the block in the mount namespace that a descriptor refers to, setns(2)."""
    own = os.open(CURRENT, os.O_RDONLY)
    try:
        _enter(namespace)
        try:
            yield
        finally:
            _enter(own)
    finally:
        os.close(own)


def _enter(namespace: int) -> None:
    """Enter a mount namespace; the working directory keeps its path."""
    directory = os.getcwd()
    privileges.unshare(CLONE_FS)  # setns(2) refuses while threads share a directory
    if _libc.setns(namespace, privileges.CLONE_NEWNS):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns(2)")
    os.chdir(directory)
