"""The mount table, and mounts for the length of a block; none of it asks a file system."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from passthrough.linux import mountinfo, syscalls
from passthrough.linux.mountinfo import FSTYPE

# mount(2)
MS_REMOUNT = 1 << 5
MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20


def mounts_at(path: Path) -> list[mountinfo.MountEntry]:
    """Return the mounts on *path*, the uppermost last."""
    return [mount for mount in mountinfo.read() if mount.target == os.fsencode(path)]


def options_at(path: Path) -> set[str]:
    """Return the options of the only mount on *path*, and those of its file system."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    (line,) = (line for line in lines if line.split()[4] == str(path))
    before, _, after = line.partition(" - ")
    return {*before.split()[5].split(","), *after.split()[2].split(",")}


def forget(mountpoint: Path) -> None:
    """Make the kernel forget the unused names, attributes and pages of this mount alone.

    A remount does that, reconfigure_super() in the kernel's fs/super.c. The volume's submounts
    count as well.
    """
    flags = MS_REMOUNT | syscalls.MS_NOSUID | syscalls.MS_NODEV
    targets = [
        mount.target
        for mount in mountinfo.read()
        if mount.fstype == FSTYPE and Path(os.fsdecode(mount.target)).is_relative_to(mountpoint)
    ]
    assert targets, mountpoint
    for target in targets:
        syscalls.mount(b"none", target, b"", flags, b"")


@contextlib.contextmanager
def mounted_on(target: Path, fstype: str, options: str = "", flags: int = 0) -> Iterator[Path]:
    """Mount an empty file system on *target*; ramfs is one without file handles.

    *flags* are MS_* of mount(2).

    At the end of the block, processes may still use the mount: it is detached.
    """
    syscalls.mount(b"none", os.fsencode(target), fstype.encode(), flags, options.encode())
    try:
        yield target
    finally:
        syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)


@contextlib.contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    """Bind *source* to *target*, and unmount it in the end, even if *target* has been moved."""
    target.mkdir(parents=True, exist_ok=True)
    syscalls.mount(os.fsencode(source), os.fsencode(target), b"none", MS_BIND, b"")
    fd = os.open(target, os.O_PATH)
    try:
        yield
    finally:
        where = os.readlink(f"/proc/self/fd/{fd}")
        os.close(fd)
        syscalls.umount2(os.fsencode(where), syscalls.MNT_DETACH)
