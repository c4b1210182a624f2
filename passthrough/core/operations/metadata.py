"""What a file is: its attributes, and the file system that it lies on."""

import os
import stat

from passthrough.core.inode_file import Inode
from passthrough.core.inodes import ROOT
from passthrough.core.operations.base import Operations
from passthrough.core.readonly import changing
from passthrough.identity.attributes import OMIT, Attributes, Changes, allows
from passthrough.identity.idmap import Caller
from passthrough.linux import fdpath, filecalls, syscalls


class MetadataOperations(Operations):
    """What acts on an inode itself."""

    def getattr(self, number: int) -> Attributes:
        """The attributes as the host has them now."""
        return self._attributes(self.inodes[number])

    def statx(self, number: int) -> tuple[Attributes, tuple[int, int] | None]:
        """The attributes as `getattr`, and the time of birth in seconds and nanoseconds, statx(2).

        None where the host's file system does not know it.
        """
        inode = self.inodes[number]
        with inode.opened() as fd:
            return self._attributes(inode), filecalls.birth_time(fd)

    def syncfs(self, number: int) -> None:
        """Bring the host's file system that a directory lies on to stable storage, syncfs(2)."""
        fd = self._reopen(self.inodes[number], stat.S_IFDIR, os.O_RDONLY | os.O_DIRECTORY)
        try:
            filecalls.syncfs(fd)
        finally:
            os.close(fd)

    @changing
    def setattr(
        self,
        number: int,
        changes: Changes,
        handle: int | None = None,
        *,
        clear_privileges: bool = False,
        caller: Caller | None = None,
    ) -> Attributes:
        """Change mode, owner, size and times, in this order: each may undo part of the one before.

        *handle* is the open file through which the caller truncates, if it does; with
        *clear_privileges* that takes suid and sgid bits away, as a change of owner always does,
        and one that changes nothing; *caller* as in `keeps_sgid`. If it comes with a mode, *caller*
        is as in `Ownership.change_mode`. A failure leaves the changes before it done.
        """
        if changes.size is not None:
            self._check_sealed()
        inode = self._changing(number)
        with inode.opened() as fd:
            path = fdpath.of(fd)
            if changes.mode is not None:
                self.ownership.change_mode(fd, changes.mode, caller)
            clears = clear_privileges and changes.size is None
            if clears or changes.uid is not None or changes.gid is not None:
                self.ownership.change_owner(path, changes.uid, changes.gid)
            if clears:
                self._drop_sgid(inode, path, caller)
            if changes.size is not None:
                if clear_privileges or self.ownership.restricted:
                    with self._clearing(number, inode.stat(), caller):
                        self._truncate(inode, changes.size, handle)
                else:
                    self._truncate(inode, changes.size, handle)
            if changes.atime != OMIT or changes.mtime != OMIT:
                syscalls.utimensat(path, changes.atime, changes.mtime)
        return self._attributes(inode)

    def access(self, number: int, mask: int, caller: Caller) -> bool:
        """Whether *caller* may do *mask*, access(2); its supplementary groups are not known here.

        Kernels that check permissions themselves never ask.
        """
        attributes = self.inodes[number].stat()
        return allows(attributes, self.ownership.shown(attributes), mask, caller)

    def statfs(self, number: int = ROOT) -> os.statvfs_result:
        """The host's file system that inode *number* lies on."""
        with self.inodes.opened(number) as fd:
            return os.statvfs(fd)

    def _drop_sgid(self, inode: Inode, path: bytes, caller: Caller | None) -> None:
        """Take away what chown(2) by this process leaves: an sgid bit without group execution."""
        found = inode.stat()
        if found.st_mode & stat.S_ISGID and not self._keeps_sgid(found, caller):
            os.chmod(path, stat.S_IMODE(found.st_mode) & ~stat.S_ISGID)

    def _truncate(self, inode: Inode, size: int, handle: int | None) -> None:
        if handle is not None:
            os.ftruncate(self.files[handle].fd, size)
            return
        fd = self._reopen(inode, stat.S_IFREG, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)
