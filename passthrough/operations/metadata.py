"""What a file is: its attributes, and the file system that it lies on."""

import os
import stat

from passthrough import syscalls
from passthrough.attributes import OMIT, Attributes, Changes, allows
from passthrough.idmap import Caller
from passthrough.inodes import Inode
from passthrough.operations.base import Operations
from passthrough.readonly import changing


class MetadataOperations(Operations):
    """What acts on an inode itself."""

    def getattr(self, number: int) -> Attributes:
        """The attributes as the host has them now."""
        return self._attributes(self.inodes[number])

    @changing
    def setattr(self, number: int, changes: Changes, handle: int | None = None) -> Attributes:
        """Change mode, owner, size and times, in this order: each may undo part of the one before.

        *handle* is the open file through which the caller truncates, if it does. A failure leaves
        the changes before it done.
        """
        if changes.size is not None:
            self._check_sealed()
        inode = self.inodes[number]
        if changes.mode is not None:
            os.chmod(inode.path, changes.mode)
        if changes.uid is not None or changes.gid is not None:
            self.ownership.give(inode.path, changes.uid, changes.gid)
        if changes.size is not None:
            self._truncate(inode, changes.size, handle)
        if changes.atime != OMIT or changes.mtime != OMIT:
            syscalls.utimensat(inode.path, changes.atime, changes.mtime)
        return self._attributes(inode)

    def access(self, number: int, mask: int, caller: Caller) -> bool:
        """Whether *caller* may do *mask*, access(2); its supplementary groups are not known here.

        Kernels that check permissions themselves never ask.
        """
        attributes = os.fstat(self.inodes[number].fd)
        return allows(attributes, self.ownership.shown(attributes), mask, caller)

    def statfs(self) -> os.statvfs_result:
        """The host's file system that the source lies on."""
        return os.statvfs(self.inodes.root.fd)

    def _truncate(self, inode: Inode, size: int, handle: int | None) -> None:
        if handle is not None:
            os.ftruncate(self.files[handle].fd, size)
            return
        fd = self._reopen(inode, stat.S_IFREG, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)
