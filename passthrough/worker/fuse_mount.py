"""Mounts and unmounts a FUSE file system without fusermount: mount(2), fuse(4).

The mounting process opens /dev/fuse itself. So it can keep the descriptor when the process that
answers the requests ends.
"""

import os
from pathlib import Path
from typing import Final

from passthrough.linux import privileges, syscalls
from passthrough.linux.mountinfo import FSTYPE
from passthrough.options.choices import Atime, Squash
from passthrough.options.effective import Effective

_ATIME_FLAGS: Final = {
    Atime.RELATIME: syscalls.MS_RELATIME,
    Atime.NOATIME: syscalls.MS_NOATIME,
    Atime.STRICTATIME: syscalls.MS_STRICTATIME,
}


def mount(target: Path, config: Effective) -> int:
    """Mount at *target*, an existing directory; requests wait until a worker serves them.

    The kernel checks permissions itself (default_permissions), for every user (allow_other). With
    squash=all the host checks them for the anonymous user (core/powerless.pyx), because the
    kernel does not know the user that all callers become.

    Returns:
        The descriptor of /dev/fuse that belongs to the mount, owned by the caller. When its last
        duplicate is closed, the kernel ends the connection and the mount answers ENOTCONN.

    Raises:
        OSError: /dev/fuse cannot be opened, or mount(2) failed.
    """
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        if config.squash is not Squash.ALL:
            data += ",default_permissions"
        syscalls.mount(
            os.fsencode(config.fsname),
            os.fsencode(target),
            FSTYPE.encode(),
            _flags(config),
            data.encode(),
        )
    except BaseException:
        os.close(fd)
        raise
    return fd


def unmount(target: Path, *, abort: bool = False, lazy: bool = True) -> None:
    """Detach the uppermost mount at *target*; open files in it stay usable.

    Unless *lazy* is set, a mount that is in use is not detached.

    With *abort* the connection ends as well, which frees processes that wait for a dead worker:
    waiting requests fail with ECONNABORTED, later ones with ENOTCONN.

    Raises:
        OSError: EINVAL if nothing is mounted at *target*; EBUSY if it is in use.
    """
    flags = syscalls.UMOUNT_NOFOLLOW
    if lazy:
        flags |= syscalls.MNT_DETACH
    if abort:
        flags |= syscalls.MNT_FORCE
    syscalls.umount2(os.fsencode(target), flags)


def abort(device: int) -> None:
    """End the connection of the file system *device* (st_dev), and leave its mounts in place.

    The kernel does so by itself when the last descriptor of /dev/fuse is closed.

    Raises:
        OSError: ENOENT if there is no such connection, ENODEV if the kernel has no fusectl.
    """
    tree_fd = privileges.new_tree(b"fusectl")
    try:
        file_fd = os.open(f"{os.minor(device)}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=tree_fd)
        with os.fdopen(file_fd, "wb", buffering=0) as file:
            file.write(b"1")
    finally:
        os.close(tree_fd)


def _flags(config: Effective) -> int:
    flags = _ATIME_FLAGS[config.atime]
    for wanted, flag in (
        (config.readonly, syscalls.MS_RDONLY),
        (not config.suid, syscalls.MS_NOSUID),
        (not config.dev, syscalls.MS_NODEV),
        (not config.exec, syscalls.MS_NOEXEC),
        (not config.diratime, syscalls.MS_NODIRATIME),
    ):
        if wanted:
            flags |= flag
    return flags
