"""The checks of the data directory and its file system."""

import os
import stat
from contextlib import suppress
from typing import Final

from passthrough.linux import filehandles, mountinfo
from plugin.doctor.facts import Facts
from plugin.doctor.finding import Found, State

_MIB: Final = 1 << 20
_LITTLE_BYTES: Final = 100 * _MIB
_LITTLE_INODES: Final = 1000
_LITTLE_SHARE: Final = 0.02
_OTHERS: Final = 0o077
_NOT_THERE: Final = "not there"


def data_directory(facts: Facts) -> Found:
    """Look at the data directory: its space, its owner, its mode."""
    path = facts.machine.data_dir
    try:
        found, space = os.stat(path), os.statvfs(path)
    except FileNotFoundError:
        return _missing(facts)
    if not stat.S_ISDIR(found.st_mode):
        return Found(
            State.ERROR, f"{path} is no directory", "no plugin starts", f"move {path} away"
        )
    fstype = mountinfo.covering(mountinfo.read(), os.fsencode(os.path.realpath(path))).fstype
    free_mib = space.f_bavail * space.f_frsize // _MIB
    told = f"{path} on {fstype}, {free_mib} MiB and {space.f_favail} inodes free"
    if not space.f_files:  # btrfs counts no inodes
        told = f"{path} on {fstype}, {free_mib} MiB free"
    if space.f_flag & os.ST_RDONLY:
        return Found(
            State.ERROR,
            f"{told}, read-only",
            "no volume can be made or mounted",
            f"mount -o remount,rw {path}; dmesg may say why it is read-only",
        )
    if facts.plugin.pid and found.st_uid not in _owners(facts):
        return Found(
            State.WARNING,
            f"{told}, of user {found.st_uid}",
            "this user may replace the registry and the files of all volumes",
            f"chown 0:0 {path}",
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & _OTHERS:
        return Found(
            State.WARNING,
            f"{told}, mode {mode:04o}",
            "users of the host may reach the files of volumes without a source",
            f"chmod 0700 {path}",
        )
    return _of_space(told, path, space)


def _owners(facts: Facts) -> set[int]:
    """Return root, and the user that is root to the plugin of an engine that remaps users."""
    with suppress(FileNotFoundError):
        return {0, facts.process.stat().st_uid}
    return {0}


def file_handles(facts: Facts) -> Found:
    """Open the data directory by its kernel file handle."""
    try:
        fd = os.open(facts.machine.data_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Found(
            State.NOTE,
            "the data directory is not there",
            "nothing yet: the check needs it",
            "install passfs, and run the command again",
        )
    try:
        obstacle = filehandles.obstacle(fd)
    finally:
        os.close(fd)
    if obstacle:
        return Found(
            State.NOTE,
            obstacle,
            "inode_file_handles is `never` for volumes without a source: each cached file holds a"
            " descriptor",
            "put the data directory on ext4, xfs or btrfs, and give the plugin CAP_DAC_READ_SEARCH",
        )
    return Found(State.OK, "files of the data directory can be held by file handle")


def _missing(facts: Facts) -> Found:
    path = facts.machine.data_dir
    if facts.engine.name or facts.service.unit:
        return Found(
            State.ERROR,
            f"{path} is {_NOT_THERE}",
            "the plugin does not start; an engine of version 20.10 does not start either",
            f"mkdir -m 0700 -p {path}, or mount its disk; then restore a backup"
            " (docs/operations.md)",
        )
    return Found(
        State.NOTE,
        f"{path} is {_NOT_THERE}",
        "passfs was not installed with this data directory",
        "the installation makes it; --data-dir names another one",
    )


def _of_space(told: str, path: str, space: os.statvfs_result) -> Found:
    bytes_free = space.f_bavail * space.f_frsize
    inodes_counted = space.f_files > 0
    if not bytes_free or (inodes_counted and not space.f_favail):
        return Found(
            State.ERROR,
            told,
            "no volume can be made, and containers get ENOSPC",
            f"free space in {path}",
        )
    share = space.f_bavail / space.f_blocks if space.f_blocks else 1.0
    few_inodes = inodes_counted and space.f_favail < _LITTLE_INODES
    if few_inodes or (bytes_free < _LITTLE_BYTES and share < _LITTLE_SHARE):
        return Found(State.WARNING, told, "the disk is almost full", f"free space in {path}")
    return Found(State.OK, told)
