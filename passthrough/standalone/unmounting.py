"""Unmounts a mount without Docker, and waits for the end of its processes."""

import os
from pathlib import Path
from typing import Final

from passthrough.linux import mountinfo
from passthrough.linux.mountinfo import FSTYPE, MountEntry
from passthrough.standalone import records
from passthrough.worker import fuse_mount

END_S: Final = 10.0
"""The processes of an idle mount end within 0.1 s. A slow disk may hold up those of a busy one."""


class UnmountError(Exception):
    """A directory that is not unmounted, or whose processes go on; the text has the reason."""


def unmount(directory: str, *, lazy: bool = False) -> MountEntry:
    """Unmount *directory*, and wait until no process serves it; return the mount.

    If *lazy* is set, detach it at once: open files stay usable, and the processes end with them.

    Raises:
        OSError: it cannot be opened, or (EBUSY) it is in use.
        UnmountError: no mount without Docker is there, or its processes do not end.
    """
    mount = _find(directory)
    fuse_mount.unmount(Path(os.fsdecode(mount.target)), lazy=lazy)
    if not records.drop(mount, within_s=0 if lazy else END_S) and not lazy:
        raise UnmountError(
            f"{directory} is unmounted, but its processes go on after {END_S:g} s: another mount"
            " namespace or a bind mount may use the file system"
        )
    return mount


def _find(directory: str) -> MountEntry:
    """Return the mount at *directory*; ask no file system, because it may hang."""
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        path = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
        mount = mountinfo.of(mountinfo.read(), fd)
    except LookupError:
        raise UnmountError(f"{directory} is being unmounted") from None
    finally:
        os.close(fd)
    if mount.target != path or mount.fstype != FSTYPE:
        raise UnmountError(f"{directory} is no mount point of passfs")
    if not records.has(mount):
        raise UnmountError(
            f"{directory} is the mount of a volume: stop the containers that use it. `passfs ls`"
            " lists the volumes, and the engine unmounts one after its last container. umount(8)"
            f" unmounts a mount without Docker that is not recorded in {records.DIRECTORY}"
        )
    return mount
