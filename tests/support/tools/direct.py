"""Calls PassthroughFs directly, as a session does."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.inode_file import Inode
from passthrough.core.inodes import ROOT
from passthrough.identity.attributes import Entry
from passthrough.identity.idmap import Caller, ContainerId


def caller(uid: int, gid: int) -> Caller:
    """Return a caller with these ids."""
    return Caller(ContainerId(uid), ContainerId(gid))


CALLER = caller(41_001, 41_002)


def number_of(fs: PassthroughFs, *names: bytes) -> int:
    """Look *names* up, one below the other; return the inode number of the last."""
    number = ROOT
    for name in names:
        number = fs.lookup(number, name).inode_number
    return number


def listing(fs: PassthroughFs, number: int = ROOT) -> dict[bytes, Entry | None]:
    """Return all names of a directory, each with its entry."""
    handle = fs.opendir(number)
    try:
        return {record.name: entry for record, entry in fs.readdirplus(handle, 0)}
    finally:
        fs.releasedir(handle)


def descriptor_of(inode: Inode) -> int:
    """Return the descriptor number of *inode*; it is closed if a file handle holds the inode."""
    with inode.opened() as fd:
        return fd


def fails(number: int, operation: Callable[[], object]) -> None:
    """Expect that *operation* raises OSError with errno *number*."""
    with pytest.raises(OSError, match=r"\[Errno") as failed:
        operation()
    assert errno.errorcode[failed.value.errno or 0] == errno.errorcode[number]


def descriptors_below(directory: Path) -> set[int]:
    """Return this process's descriptors of *directory* and of files below it."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = Path(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if target.is_relative_to(directory):
            found.add(int(name))
    return found
