"""As whom the worker acts in a volume that squashes ids: the decisions, without a system call.

squash=root takes callers with user 0 or group 0, squash=all takes every caller. For each caller the
worker acts as the ids that squashing leaves, without a capability (powerless.py), in each request
that names a file or asks for a right. So the host decides what is allowed, as for a process of that
user. All else acts as the worker: requests for data count as the caller that opened the file, and
attributes are no right.

A caller that squashing takes has no supplementary groups. Of the others the kernel has checked the
groups, which the worker does not know; but the kernel lets a process with CAP_DAC_OVERRIDE or the
like pass, and root of a container keeps its capabilities if it takes another id. So for these the
worker acts as a user without supplementary groups first. If the host refuses, it acts as a member
of those groups of the files concerned that would give a right, as far as a caller can be a member.

Execution is decided by the mode and `system.posix_acl_access` (`may_execute`): the sandbox's mounts
let no program be executed, so access(2) would always refuse X_OK there.
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
"""The operations that act as the caller, and which of their arguments are inode numbers."""

BY_ARGUMENTS: Final = frozenset({"rename", "setattr"})
"""The operations that act as the caller by more of their arguments; see `needs_no_right`, too."""

AS_OPENER: Final = frozenset(
    {
        *("read", "write", "flush", "fsync", "release", "fallocate", "lseek", "copy_file_range"),
        *("readdir", "readdirplus", "fsyncdir", "releasedir"),
        *("getlk", "setlk", "setlkw", "flock", "interrupt"),
    }
)
"""The operations on what is open: its caller was asked for its right when it opened the file."""

AS_WORKER: Final = frozenset({"forget", "getattr", "statx", "statfs", "syncfs", "close"})
"""The operations that ask for no right."""

REFUSED: Final = frozenset({"unopened", "unopened_stream"})
"""The operations on what no caller has opened; decisions.py turns off what leads to them."""

ALONE: Final = (False,)
AS_MEMBER: Final = (True,)
EITHER: Final = (False, True)
"""If an unsquashed caller counts as a member of the groups concerned, in each try."""

_ROOT: Final = 0
# What the kernel adds to the flags of open(2) for execve(2), __FMODE_EXEC in linux/fs.h.
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
        """Whether all callers are one user, so that the kernel checks nothing."""
        return self._squash is Squash.ALL

    def squashes(self, caller: Caller) -> bool:
        """Return whether squashing takes *caller*, which then has no supplementary groups.

        It takes a caller whose id the kernel cannot express, too. No user acts as that one.
        """
        return self.squashes_all or _ROOT in caller or NO_ID in caller

    def acts_as(self, caller: Caller) -> HostIds:
        """Return the ids that the worker acts as for *caller*.

        Raises:
            UnmappedError: of a squashed one, the user or the group has no counterpart on the host.
        """
        if self.squashes(caller):
            return self._maps.to_host(caller)
        return self._maps.to_host_or_placeholder(caller)

    def possible_groups(self, found: Iterable[int]) -> tuple[HostId, ...]:
        """Return those of the groups *found* in which an unsquashed caller may be."""
        return tuple({HostId(gid) for gid in found if self._maps.may_be_in(HostId(gid))})

    def new_group(self, gid: ContainerId | None) -> tuple[int, ...]:
        """Return the group of the host that chown(2) gives a file, if it gives one."""
        try:
            host_gid = self._maps.new_owner(None, gid)[1]
        except UnmappedError:  # which the change will report
            return ()
        return () if host_gid is None else (host_gid,)


def group_counts(mode: int) -> bool:
    """Return whether a file's group has a right by its *mode* that all others lack."""
    return bool(mode >> 3 & ~mode & _ALL)


def membership_tries(mode: int | None, *, directory: bool) -> tuple[bool, ...]:
    """Return if a caller counts as a member of groups, in one try of chmod(2) after the other.

    By a group that a caller may not be in, a file would keep the sgid bit that it is given. On a
    directory the bit gives a program no power, and the kernel has checked the groups.
    """
    if mode is None or not mode & stat.S_ISGID:
        return EITHER
    return AS_MEMBER if directory else ALONE


def needs_no_right(changes: Changes, handle: int | None) -> bool:
    """Return whether SETATTR asks for no right, or for one that *handle* was opened with.

    ftruncate(2), and the times that the kernel writes back of an open file, come with a handle; the
    latter from a thread of the kernel, as user 0. What asks for nothing comes before a write.
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
    """Return whether *ids*, without a capability, may execute a regular file.

    *more* are their supplementary groups. *owner* are the file's user and group; *acl* is its
    attribute system.posix_acl_access or empty, acl(5).
    For files on a mount that lets no program be executed: access(2) always says no there.
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
