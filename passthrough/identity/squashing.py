"""Decides the ids that the worker acts with in a volume that squashes ids; no system call.

squash=root squashes callers with user 0 or group 0, squash=all squashes every caller. In each
request that names a file or needs a right, the worker acts with the caller's ids after squashing,
without capabilities (powerless.py). So the host decides, as for a process of that user. In all
other requests the worker acts as itself: data belong to the caller that opened the file, and
attributes need no right.

A squashed caller has no supplementary groups. The groups of other callers are known to the kernel,
which has checked them, and unknown to the worker. But the kernel's check passes for a process with
a capability such as CAP_DAC_OVERRIDE, and root of a container keeps its capabilities if it changes
its id. So the worker first acts as a user without supplementary groups. If the host refuses, the
worker acts as a member of the files' groups that would give a right, as far as a caller can be a
member.

`may_execute` decides about execution by the mode and `system.posix_acl_access`: the sandbox's
mounts are noexec, so that access(2) would always refuse X_OK there.
"""

import stat
import struct
from collections.abc import Iterable, Mapping
from typing import Final

from passthrough.identity.attributes import OMIT, Changes
from passthrough.identity.idmap import (
    NO_ID,
    Caller,
    ContainerId,
    HostId,
    HostIds,
    IdMaps,
    UnmappedError,
)
from passthrough.options.choices import Squash
from passthrough.options.effective import Effective

AS_CALLER: Final[Mapping[str, tuple[int, ...]]] = {
    "lookup": (0,),
    "mknod": (0,),
    "mkdir": (0,),
    "symlink": (0,),
    "link": (0, 1),
    "unlink": (0,),
    "rmdir": (0,),
    "readlink": (0,),
    "open": (0,),
    "create": (0,),
    "tmpfile": (0,),
    "opendir": (0,),
    "access": (0,),
    "getxattr": (0,),
    "setxattr": (0,),
    "listxattr": (0,),
    "removexattr": (0,),
    "ioctl": (),
}
"""The operations that act as the caller, with the positions of inode numbers in their arguments."""

BY_ARGUMENTS: Final = frozenset({"rename", "setattr"})
"""The operations that act as the caller only with some arguments; see `needs_no_right`."""

AS_OPENER: Final = frozenset(
    {
        *("read", "write", "flush", "fsync", "release", "fallocate", "lseek", "copy_file_range"),
        *("readdir", "readdirplus", "fsyncdir", "releasedir"),
        *("getlk", "setlk", "setlkw", "flock", "interrupt"),
    }
)
"""The operations on open files: the host checked the caller's right at the open."""

AS_WORKER: Final = frozenset({"forget", "getattr", "statx", "statfs", "syncfs", "close"})
"""The operations that need no right."""

REFUSED: Final = frozenset({"unopened", "unopened_stream"})
"""The operations that serve READ and READDIR without an open before.

options/effective.py turns no_open and no_opendir off.
"""

ALONE: Final = (False,)
AS_MEMBER: Final = (True,)
EITHER: Final = (False, True)
"""For each try: True if an unsquashed caller counts as a member of the groups concerned."""

_ROOT: Final = 0
# The flag that the kernel adds to open(2) for execve(2), __FMODE_EXEC in linux/fs.h.
_FOR_EXECUTION: Final = 0x20
# The attribute system.posix_acl_access, linux/posix_acl_xattr.h: tag, permissions, id.
_ACL_HEAD: Final = 4
_ACL_ENTRY: Final = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_EXECUTE: Final = 1
_ALL: Final = 7


class Squashing:
    """The decisions of one volume."""

    __slots__ = ("_maps", "_squash")

    def __init__(self, config: Effective) -> None:
        self._squash = config.squash
        self._maps = IdMaps(config)

    @property
    def squashes_all(self) -> bool:
        """True if all callers act as one user, so that the kernel checks no permissions."""
        return self._squash is Squash.ALL

    def squashes(self, caller: Caller) -> bool:
        """Return whether *caller* is squashed, and so has no supplementary groups.

        A caller with an id that the kernel cannot express, which no user has, is squashed as well.
        """
        return self.squashes_all or _ROOT in caller or NO_ID in caller

    def acts_as(self, caller: Caller) -> HostIds:
        """Return the ids that the worker acts as for *caller*.

        Raises:
            UnmappedError: *caller* is squashed, and an id has no counterpart on the host.
        """
        if self.squashes(caller):
            return self._maps.to_host(caller)
        return self._maps.to_host_or_placeholder(caller)

    def possible_groups(self, found: Iterable[int]) -> tuple[HostId, ...]:
        """Return the groups of *found* that an unsquashed caller may be a member of."""
        return tuple({HostId(gid) for gid in found if self._maps.may_have_group(HostId(gid))})

    def new_group(self, gid: ContainerId | None) -> tuple[int, ...]:
        """Return the group of the host that chown(2) gives a file, or nothing if it gives none."""
        try:
            host_gid = self._maps.new_owner(None, gid)[1]
        except UnmappedError:  # chown(2) reports it
            return ()
        return () if host_gid is None else (host_gid,)


def group_counts(mode: int) -> bool:
    """Return whether *mode* gives a file's group a right that others lack."""
    return bool(mode >> 3 & ~mode & _ALL)


def membership_tries(mode: int | None, *, directory: bool) -> tuple[bool, ...]:
    """Return for each try of chmod(2) whether the caller counts as a member of groups.

    As a member of a group that it may not be in, a caller could give a file the sgid bit. On a
    directory the bit gives a program no rights, and the kernel has checked the groups.
    """
    if mode is None or not mode & stat.S_ISGID:
        return EITHER
    return AS_MEMBER if directory else ALONE


def needs_no_right(changes: Changes, handle: int | None) -> bool:
    """Return whether SETATTR needs no right, or only the right that *handle* was opened with.

    The kernel sends *handle* for ftruncate(2), and when it writes back the times of an open file as
    user 0. Before a write, the kernel sends a SETATTR without changes, to clear suid and sgid bits.
    """
    if changes.mode is not None or changes.uid is not None or changes.gid is not None:
        return False
    if handle is not None:
        return True
    return changes.size is None and changes.atime == OMIT and changes.mtime == OMIT


def is_execution(flags: int) -> bool:
    """Return whether *flags* of open(2) are those of execve(2)."""
    return bool(flags & _FOR_EXECUTION)


def may_execute(
    mode: int, owner: tuple[int, int], acl: bytes, ids: HostIds, more: tuple[HostId, ...] = ()
) -> bool:
    """Return whether *ids*, without capabilities, may execute a regular file.

    *more* are their supplementary groups. *owner* are the file's user and group; *acl* is its
    attribute system.posix_acl_access or empty, acl(5). On a noexec mount access(2) cannot answer
    this.
    """
    if ids.uid == owner[0]:
        return bool(mode >> 6 & _EXECUTE)
    if acl:
        return _acl_allows(acl, owner[1], ids, {ids.gid, *more})
    return bool((mode >> 3 if owner[1] in {ids.gid, *more} else mode) & _EXECUTE)


def _acl_allows(acl: bytes, group: int, ids: HostIds, groups: set[HostId]) -> bool:
    """Return whether an ACL lets *ids*, which do not own the file, execute it."""
    entries = list(_ACL_ENTRY.iter_unpack(acl[_ACL_HEAD:]))
    mask = next((permissions for tag, permissions, _ in entries if tag == _MASK), _ALL)
    for tag, permissions, number in entries:
        if tag == _USER and number == ids.uid:
            return bool(permissions & mask & _EXECUTE)
    of_groups = [
        permissions
        for tag, permissions, number in entries
        if {_GROUP_OBJ: group, _GROUP: number}.get(tag) in groups
    ]
    if of_groups:
        return any(permissions & mask & _EXECUTE for permissions in of_groups)
    return any(tag == _OTHER and permissions & _EXECUTE for tag, permissions, _ in entries)
