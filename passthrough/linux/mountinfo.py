"""The mounts that this process sees: /proc/self/mountinfo, proc_pid_mountinfo(5)."""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from passthrough.linux import syscalls
from passthrough.linux.errors import os_error

FSTYPE: Final = "fuse.passfs"
"""The file system type of passfs mounts."""

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_TABLE: Final = "/proc/self/mountinfo"
_READ_BYTES: Final = 1 << 16
# Optional fields of a mount in a peer group, proc_pid_mountinfo(5); a private mount has neither.
_FOLLOWING: Final = (b"shared:", b"master:")

# The descriptor of the table in a process that does not see /proc.
_kept_fd = -1


class MountEntry(NamedTuple):
    """A line of mountinfo. Paths are bytes, with the kernel's octal escapes undone."""

    mount_id: int
    parent_id: int
    device: int
    """As in st_dev."""
    root: bytes
    """The directory of the file system that is mounted."""
    target: bytes
    """The mount point, seen from this process's root."""
    fstype: str
    source: bytes
    follows: bool = False
    """True for a shared or slave mount: mounts made elsewhere in its peer group appear on it."""


def read(path: str = _TABLE) -> list[MountEntry]:
    """Return all mounts that this process sees; at one target, the uppermost mount comes last."""
    with open(path, "rb") as lines:
        return [_parse(line) for line in lines]


def at(target: bytes) -> list[MountEntry]:
    """Return the mounts at *target*, the uppermost last; parse no other lines."""
    with open(_TABLE, "rb") as lines:
        return [_parse(line) for line in lines if _unescape(line.split(b" ", 5)[4]) == target]


def keep(path: str) -> None:
    """Keep the table at *path* open, for `fstype_of` in a process that will not see /proc."""
    global _kept_fd  # noqa: PLW0603 - belongs to the process, as its mounts do
    _kept_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def fstype_of(fd: int) -> str:
    """Return the file system type of the file behind *fd*, without a call to the file system.

    Raises:
        OSError: *fd* is not open.
        LookupError: the mount of the file has been detached.
    """
    wanted = syscalls.mount_id(fd)
    lines = _contents(_kept_fd) if _kept_fd >= 0 else Path(_TABLE).read_bytes()
    for mount in map(_parse, lines.splitlines()):
        if mount.mount_id == wanted:
            return mount.fstype
    raise LookupError(wanted)


def open_mounted(directory_fd: int, name: bytes) -> int:
    """Open the file system that is mounted on *name*, unless it is passfs.

    A volume may be bound below its own source while it is served. A request to it would wait for
    a reply of this process for ever, as would one to a ring of several volumes.

    Returns:
        An O_PATH descriptor that the caller owns.

    Raises:
        OSError: ELOOP, it is passfs; ESTALE, it is being unmounted; as open(2) reports it.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        number = errno.ELOOP if fstype_of(fd) == FSTYPE else 0
    except LookupError:
        number = errno.ESTALE
    except BaseException:
        os.close(fd)
        raise
    if number:
        os.close(fd)
        raise os_error(number)
    return fd


def _contents(fd: int) -> bytes:
    """Return all of an open file; several threads may do so at a time."""
    parts = [b""]
    while part := os.pread(fd, _READ_BYTES, sum(map(len, parts))):
        parts.append(part)
    return b"".join(parts)


def covering(mounts: Sequence[MountEntry], path: bytes) -> MountEntry:
    """Return the mount that *path* leads to, without a call to a file system.

    *path* is absolute and has no symbolic link.

    Raises:
        LookupError: *mounts* has no root.
    """
    known = {mount.mount_id for mount in mounts if mount.mount_id != mount.parent_id}
    within = [mount for mount in mounts if is_below(path, mount.target)]
    found = next((mount for mount in within if mount.parent_id not in known), None)
    if found is None:
        raise LookupError(path)
    while inner := [mount for mount in within if mount.parent_id == found.mount_id]:
        # The walk of a path enters the first mount on its way.
        found = min(inner, key=lambda mount: len(mount.target))
        within.remove(found)
    return found


def place(mounts: Sequence[MountEntry], path: bytes) -> tuple[int, bytes]:
    """Return the device that *path* leads to, and the path in it, as `position` without a call.

    Raises:
        LookupError: *mounts* has no root.
    """
    mount = covering(mounts, path)
    relative = os.path.relpath(path, mount.target)
    return mount.device, os.path.normpath(os.path.join(mount.root, relative))


def of(mounts: Sequence[MountEntry], fd: int) -> MountEntry:
    """Return the mount that the file behind *fd* lies on.

    Raises:
        OSError: *fd* is not open.
        LookupError: the mount is none of *mounts*, because it was detached.
    """
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        fields = dict(line.split(b":", 1) for line in lines if b":" in line)
    mount_id = int(fields[b"mnt_id"])
    for mount in mounts:
        if mount.mount_id == mount_id:
            return mount
    raise LookupError(mount_id)


def contains(mounts: Sequence[MountEntry], outer_fd: int, inner_fd: int) -> bool:
    """Return whether directory *inner_fd* is directory *outer_fd*, or lies in the tree below it.

    Compares positions inside file systems, not paths: a bind mount gives a directory two paths.

    Raises:
        OSError: a descriptor is not open.
        LookupError: one of the directories lies on a detached mount.
    """
    outer_path = os.fsencode(os.readlink(f"/proc/self/fd/{outer_fd}"))
    below = [mount for mount in mounts if is_below(mount.target, outer_path)]
    areas = [position(mounts, outer_fd), *((mount.device, mount.root) for mount in below)]
    device, inner = position(mounts, inner_fd)
    return any(device == dev and is_below(inner, root) for dev, root in areas)


def is_below(path: bytes, ancestor: bytes) -> bool:
    """Return whether *path* is *ancestor* or lies below it; both are absolute and normalised."""
    return path == ancestor or path.startswith(ancestor.rstrip(b"/") + b"/")


def position(mounts: Sequence[MountEntry], fd: int) -> tuple[int, bytes]:
    """Return the device of the file behind *fd*, and its path from the file system's own root.

    Raises:
        OSError: *fd* is not open.
        LookupError: the mount of the file is none of *mounts*.
    """
    mount = of(mounts, fd)
    path = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
    relative = os.path.relpath(path, mount.target)
    return mount.device, os.path.normpath(os.path.join(mount.root, relative))


def _parse(line: bytes) -> MountEntry:
    # 36 35 98:0 /root /target rw,noatime shared:1 - ext4 /dev/sda rw   (optional fields before -)
    before, _, after = line.rstrip(b"\n").partition(b" - ")
    mount_id, parent_id, device, root, target, _flags, *tags = before.split(b" ")
    fstype, source, _options = after.split(b" ", 2)
    major, minor = device.split(b":")
    return MountEntry(
        int(mount_id),
        int(parent_id),
        os.makedev(int(major), int(minor)),
        _unescape(root),
        _unescape(target),
        fstype.decode(),
        _unescape(source),
        any(tag.startswith(_FOLLOWING) for tag in tags),
    )


def _unescape(text: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), text)
