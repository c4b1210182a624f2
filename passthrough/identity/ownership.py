"""The owners of files, through the maps: creation as the caller, chown(2), owners in replies.

With a map or squashing, a caller has no more rights to the host's files than its counterpart on the
host. It may not change a file with an unmapped owner, make a device node, use an attribute outside
of `user.`, or set suid and sgid bits for an owner other than itself.

For an unmapped owner the kernel gets the invalid id 4294967295. This id equals no caller's id, and
no capability reaches such a file, so that the kernel refuses writes, removals and most changes. But
the kernel lets root chown(2), and may cache an older owner until the timeout of the cache policy.
So each operation that changes a file checks the owner again, by the descriptor that it acts on, and
fails with EPERM. With an invalid group the kernel would refuse the owner as well, so that for an
unmapped group of a mapped user it gets 4294967294, a valid id.

For chmod(2) with suid or sgid bits, the thread acts as the caller's counterpart, without CAP_FOWNER
and CAP_FSETID. It keeps CAP_FSETID if a directory's group is in the map (`_granting`). For the sgid
bit of a new file, the thread lacks CAP_FSETID alone. The host then compares the owner under the
inode's lock, so that no chown(2) comes between check and change.
"""

import contextlib
import errno
import logging
import os
import stat
from contextlib import AbstractContextManager
from typing import Final

from passthrough.identity import credentials
from passthrough.identity.attributes import PRIVILEGES
from passthrough.identity.idmap import (
    Caller,
    ContainerId,
    ContainerIds,
    HostId,
    HostIds,
    IdMaps,
    UnmappedError,
    maps,
)
from passthrough.linux import fdpath, syscalls
from passthrough.linux.errors import os_error
from passthrough.options.effective import Effective

log = logging.getLogger(__name__)

_SAME: Final = -1  # chown(2): no change of this id
# The flag that the kernel adds to open(2) for execve(2), __FMODE_EXEC of linux/fs.h.
_FOR_EXECUTION: Final = 0x20


class Ownership:
    """The owners of one volume's files, in the volume and on the host."""

    __slots__ = ("_maps", "_reported", "may_lack_owners", "restricted")

    def __init__(self, config: Effective) -> None:
        self._maps = maps(config)
        self._reported: set[str] = set()
        self.restricted = self._maps is not None
        """True if ids are mapped or squashed, so that container root is not the host's root.

        Each change of content then clears suid and sgid bits. The kernel requests this only for
        callers other than container root.
        """
        self.may_lack_owners = bool(config.map_uid)
        """True if files may belong to unmapped users."""

    def acting_as(self, caller: Caller, mode: int = 0) -> AbstractContextManager[None]:
        """Return a guard: inside it, files that this thread creates belong to *caller* on the host.

        With a map or squashing, the host drops the sgid bit of a file's *mode* if the file gets its
        group from its directory, and the group is not that of *caller*.

        Raises:
            OSError: EPERM, *caller* has no counterpart on the host.
        """
        if self._maps is None:
            return credentials.acting_as(HostIds(HostId(caller.uid), HostId(caller.gid)))
        ids = self._host_ids(self._maps, caller)
        if mode & stat.S_ISGID:
            return credentials.acting_without(ids, syscalls.CAP_FSETID)
        return credentials.acting_as(ids)

    def shown(self, attributes: os.stat_result) -> ContainerIds | None:
        """Return the owner that replies show; None if it is the host's owner, unmapped."""
        if self._maps is None:
            return None
        host = HostIds(HostId(attributes.st_uid), HostId(attributes.st_gid))
        return self._maps.to_container(host)

    def change_owner(self, path: bytes, uid: ContainerId | None, gid: ContainerId | None) -> None:
        """Change the owner of *path*, following symlinks, chown(2); None leaves an id as it is.

        Raises:
            OSError: EPERM, an id has no counterpart on the host; as chown(2) reports it.
        """
        if self._maps is None:
            os.chown(path, _SAME if uid is None else uid, _SAME if gid is None else gid)
            return
        try:
            host_uid, host_gid = self._maps.new_owner(uid, gid)
        except UnmappedError as error:
            self._report(error)
            raise
        os.chown(
            path, _SAME if host_uid is None else host_uid, _SAME if host_gid is None else host_gid
        )

    def change_mode(self, fd: int, mode: int, caller: Caller | None) -> None:
        """Change the mode of the file behind *fd*, an O_PATH descriptor, chmod(2).

        With a map or squashing, the host itself checks if *caller* may set suid and sgid bits, so
        that no change of owner comes between check and change. The host knows only the primary
        group of *caller*.

        Raises:
            OSError: EPERM, *caller* does not own the file, or is unknown; as chmod(2) reports it.
        """
        path = fdpath.of(fd)
        with self._granting(fd, mode, caller) or contextlib.nullcontext():
            os.chmod(path, mode)

    def check_change(self, attributes: os.stat_result) -> None:
        """Refuse a change of a file with an unmapped owner.

        The kernel refuses most changes, but lets root chown(2), and may cache an older owner.

        Raises:
            OSError: EPERM.
        """
        if self._lacks(attributes):
            raise os_error(errno.EPERM)

    def why_no_change_allowed(self, attributes: os.stat_result) -> str:
        """Return why no caller may change the top directory, or an empty text if its owner may."""
        if not self._lacks(attributes):
            return ""
        return (
            f"the top directory belongs to the host's user {attributes.st_uid}, which is in no"
            " range of map_uid: no caller can create or remove anything in it; chown it on the host"
        )

    def check_named(self, directory: int, name: bytes) -> None:
        """Refuse to move or remove *name* in *directory* if its file has an unmapped owner.

        rename(2) and unlink(2) act on names. No caller can move such a file to *name* after the
        check, because the check refuses that move as well.

        Raises:
            OSError: EPERM.
        """
        if not self.may_lack_owners:
            return
        try:
            fd = syscalls.open_same_mount(directory, name)
        except OSError:  # the caller's system call reports it
            return
        if fd == syscalls.MOUNT_POINT:  # a mount point: EBUSY
            return
        try:
            self.check_change(os.fstat(fd))
        finally:
            os.close(fd)

    def check_open(self, attributes: os.stat_result, flags: int) -> None:
        """Refuse to open a file with an unmapped owner, except as its mode lets others read it.

        Raises:
            OSError: EACCES.
        """
        if not self._lacks(attributes):
            return
        wanted = stat.S_IXOTH if flags & _FOR_EXECUTION else stat.S_IROTH
        writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if writes or not attributes.st_mode & wanted:
            raise os_error(errno.EACCES)

    def check_node(self, mode: int) -> None:
        """Refuse device nodes, the whiteouts of overlayfs included, with a map or squashing.

        Raises:
            OSError: EPERM.
        """
        if self.restricted and (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            raise os_error(errno.EPERM)

    def _lacks(self, attributes: os.stat_result) -> bool:
        if self._maps is None or not self.may_lack_owners:
            return False
        return self._maps.lacks_user(HostId(attributes.st_uid))

    def _granting(
        self, fd: int, mode: int, caller: Caller | None
    ) -> AbstractContextManager[None] | None:
        """Return the guard in which the host checks *mode*, or None if there is nothing to check.

        Only suid and sgid bits need a check. The sgid bit of a directory gives a program no rights.
        A directory may keep the bit, and may get it if the map has the directory's group: the
        kernel has checked that *caller* is a member of the group.
        """
        gained = mode & PRIVILEGES
        if self._maps is None or not gained:
            return None
        attributes = os.fstat(fd)
        directory = stat.S_ISDIR(attributes.st_mode)
        if directory and not gained & ~attributes.st_mode:
            return None
        if caller is None:
            raise os_error(errno.EPERM)
        ids = self._host_ids(self._maps, caller)
        if directory and not self._maps.lacks_group(HostId(attributes.st_gid)):
            return credentials.acting_without(ids, syscalls.CAP_FOWNER)
        return credentials.acting_without(ids, syscalls.CAP_FOWNER, syscalls.CAP_FSETID)

    def _host_ids(self, maps: IdMaps, caller: Caller) -> HostIds:
        """Return the ids of the host that *caller* acts as.

        Raises:
            OSError: EPERM, *caller* has no counterpart on the host.
        """
        try:
            return maps.to_host(caller)
        except UnmappedError as error:
            self._report(error)
            raise

    def _report(self, error: UnmappedError) -> None:
        """Log the first unmapped id of each map: later ones add no information."""
        if error.option not in self._reported:
            self._reported.add(error.option)
            log.warning(
                "%s, so nothing is created for it; logged once for each option", error.strerror
            )
