"""Who owns what: creating as the caller, showing owners, giving files away; through the maps.

With a map or squashing, a caller's power over the host's files ends where its counterpart's does:
no change of a file whose user the map lacks, no device node, no attribute outside of `user.`, no
suid or sgid bit for an owner other than the caller.

The kernel is told the invalid id 4294967295 for an owner that the map lacks. It equals no caller's
id, and no capability reaches such a file, so the kernel refuses writes, removals and most changes.
But the kernel lets root chown(2), and may know an older owner for as long as the cache policy says.
So each operation that changes a file checks the owner itself, by the descriptor that it acts on,
and answers EPERM. With an invalid group the kernel would refuse the owner too; an unmapped group of
a mapped user is therefore shown as 4294967294, a valid id.

For chmod(2) with suid or sgid bits, and for the sgid bit of a new file, the thread acts as the
caller's counterpart, without CAP_FOWNER and CAP_FSETID. The host then compares the owner under the
inode's lock, so no chown(2) comes in between.
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

_SAME: Final = -1  # an id that chown(2) leaves as it is
# What the kernel gives open(2) for execve(2) beside O_RDONLY, __FMODE_EXEC of linux/fs.h.
_FOR_EXECUTION: Final = 0x20


class Ownership:
    """The owners of one volume's files, between its users and the host."""

    __slots__ = ("_maps", "_reported", "lacks_owners", "restricted")

    def __init__(self, config: Effective) -> None:
        self._maps = maps(config)
        self._reported: set[str] = set()
        self.restricted = self._maps is not None
        """Whether ids are mapped or squashed, so that container root is not the host's.

        All changes of content then take suid and sgid bits away. The kernel asks for it only where
        the caller is another user than container root.
        """
        self.lacks_owners = bool(config.map_uid)
        """Whether files may belong to users whom the map lacks."""

    def acting_as(self, caller: Caller, mode: int = 0) -> AbstractContextManager[None]:
        """A guard: inside it, what this thread creates belongs to *caller* on the host.

        With a map or squashing, the host leaves out the sgid bit of a file's *mode* if the file
        gets another group than that of *caller*, from its directory.

        Raises:
            OSError: EPERM, *caller* is nobody there.
        """
        if self._maps is None:
            return credentials.acting_as(HostIds(HostId(caller.uid), HostId(caller.gid)))
        ids = self._host_ids(self._maps, caller)
        if mode & stat.S_ISGID:
            return credentials.acting_without(ids, syscalls.CAP_FSETID)
        return credentials.acting_as(ids)

    def shown(self, attributes: os.stat_result) -> ContainerIds | None:
        """Whom a file is shown to belong to, if that is not whom it belongs to on the host."""
        if self._maps is None:
            return None
        host = HostIds(HostId(attributes.st_uid), HostId(attributes.st_gid))
        return self._maps.to_container(host)

    def change_owner(self, path: bytes, uid: ContainerId | None, gid: ContainerId | None) -> None:
        """Change the owner of *path*, following symlinks, chown(2); None leaves an id as it is.

        Raises:
            OSError: EPERM, an id is nobody's on the host; as chown(2) reports it.
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
        that no change of owner comes in between. It knows no group of *caller* but the primary one.

        Raises:
            OSError: EPERM, *caller* does not own the file, or is not known; as chmod(2) reports it.
        """
        path = fdpath.of(fd)
        with self._granting(fd, mode, caller) or contextlib.nullcontext():
            os.chmod(path, mode)

    def check_change(self, attributes: os.stat_result) -> None:
        """Refuse a change of a file whose user the map lacks.

        The kernel refuses most of them, but lets root chown(2), and may know an older owner.

        Raises:
            OSError: EPERM.
        """
        if self._lacks(attributes):
            raise os_error(errno.EPERM)

    def why_unchanged(self, attributes: os.stat_result) -> str:
        """Return why no caller may change the top of a volume; empty if its owner may."""
        if not self._lacks(attributes):
            return ""
        return (
            f"the top directory belongs to the host's user {attributes.st_uid}, who is in no range"
            " of map_uid: no caller can create or remove anything in it; chown it on the host"
        )

    def check_named(self, directory: int, name: bytes) -> None:
        """Refuse to move or remove *name* in *directory* if the map lacks its file's user.

        rename(2) and unlink(2) act on names. Callers of the volume cannot make *name* lead to such
        a file meanwhile, because this check refuses that as well.

        Raises:
            OSError: EPERM.
        """
        if not self.lacks_owners:
            return
        try:
            fd = syscalls.open_same_mount(directory, name)
        except OSError:  # which the call that follows will meet, and report
            return
        if fd == syscalls.MOUNT_POINT:  # a mount point: EBUSY
            return
        try:
            self.check_change(os.fstat(fd))
        finally:
            os.close(fd)

    def check_open(self, attributes: os.stat_result, flags: int) -> None:
        """Refuse to open a file whose user the map lacks, but for what its mode lets all do.

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
        if self._maps is None or not self.lacks_owners:
            return False
        return self._maps.lacks_user(HostId(attributes.st_uid))

    def _granting(
        self, fd: int, mode: int, caller: Caller | None
    ) -> AbstractContextManager[None] | None:
        """The guard in which the host checks a *mode* with suid or sgid bits; None if any will do.

        The sgid bit of a directory gives no power to a program. It stays where it is, and passes on
        each group that the map has: that *caller* is a member of it, the kernel has checked.
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
            OSError: EPERM, *caller* is nobody there.
        """
        try:
            return maps.to_host(caller)
        except UnmappedError as error:
            self._report(error)
            raise

    def _report(self, error: UnmappedError) -> None:
        """Say once for each map that it lacks somebody: who tries again says nothing new."""
        if error.option not in self._reported:
            self._reported.add(error.option)
            log.warning("%s, so nothing is created for it; this is said once", error.strerror)
