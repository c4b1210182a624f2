"""What replies say about a file, what SETATTR changes, and what its mode allows."""

import os
import stat
from typing import Final, NamedTuple

from passthrough.identity.idmap import UNMAPPED, Caller, ContainerId, ContainerIds
from passthrough.linux import syscalls

OMIT: Final = (0, syscalls.UTIME_OMIT)
PRIVILEGES: Final = stat.S_ISUID | stat.S_ISGID


class Attributes:
    """What GETATTR and SETATTR answer: st_* and how long they stay known, in seconds.

    *number* is the st_ino that users see: that of the file's entry, and of the root the host's.
    *owner* is whom the file is shown to belong to; None for whom it belongs to on the host.
    """

    __slots__ = ("number", "owner", "stat", "timeout")

    def __init__(
        self,
        number: int,
        attributes: os.stat_result,
        timeout: float,
        owner: ContainerIds | None = None,
    ) -> None:
        self.number = number
        self.stat = attributes
        self.owner = owner
        self.timeout = timeout


class Entry:
    """A file that a name led to: its inode number, attributes, and how long both stay known.

    *owner* as in Attributes. *submount* says that it is the root of another file system than the
    directory's.
    """

    __slots__ = ("attr_timeout", "entry_timeout", "inode_number", "owner", "stat", "submount")

    def __init__(
        self,
        inode_number: int,
        attributes: os.stat_result,
        timeouts: tuple[float, float],
        owner: ContainerIds | None = None,
        *,
        submount: bool = False,
    ) -> None:
        self.inode_number = inode_number
        self.submount = submount
        self.stat = attributes
        self.owner = owner
        self.entry_timeout, self.attr_timeout = timeouts


class Changes(NamedTuple):
    """What SETATTR changes; None, and OMIT for times, leave a field alone."""

    mode: int | None = None
    uid: ContainerId | None = None
    gid: ContainerId | None = None
    size: int | None = None
    atime: tuple[int, int] = OMIT
    """Seconds and nanoseconds, utimensat(2)."""
    mtime: tuple[int, int] = OMIT


NO_CHANGES: Final = Changes()


def keeps_sgid(
    attributes: os.stat_result, owner: ContainerIds | None, caller: Caller | None
) -> bool:
    """Return whether *caller*'s change leaves an sgid bit without group execution.

    *owner* as above. None is a caller that the kernel has checked. Supplementary groups are not
    known here.
    """
    if caller is None:
        return True
    uid, gid = owner or (attributes.st_uid, attributes.st_gid)
    return caller.uid == uid or caller.gid == gid


def without_sticky(attributes: os.stat_result) -> os.stat_result:
    """Return *attributes* without a directory's sticky bit, if it is one that has it.

    If all callers act as one user, the kernel must not apply the sticky bit: by their own ids it
    would refuse them what that user may do, may_delete() and may_create_in_sticky() of fs/namei.c.
    """
    mode = attributes.st_mode
    if not stat.S_ISDIR(mode) or not mode & stat.S_ISVTX:
        return attributes
    named = {name: getattr(attributes, name) for name in dir(attributes) if name.startswith("st_")}
    return os.stat_result((mode & ~stat.S_ISVTX, *attributes[1:]), named)


def allows(
    attributes: os.stat_result, owner: ContainerIds | None, mask: int, caller: Caller
) -> bool:
    """Whether a file lets *caller* do *mask*, access(2), by its primary group; *owner* as above."""
    mode = attributes.st_mode
    uid, gid = owner or (attributes.st_uid, attributes.st_gid)
    if uid == UNMAPPED:
        return not mask & os.W_OK and mask & ~mode & 0o7 == 0
    if caller.uid == 0:
        executable = stat.S_ISDIR(mode) or mode & 0o111
        return not mask & os.X_OK or bool(executable)
    if caller.uid == uid:
        mode >>= 6
    elif caller.gid == gid:
        mode >>= 3
    return mask & ~mode & 0o7 == 0
