"""Names in directories: looked up, given and taken away."""

import contextlib
import errno
import os
import stat
from typing import Final

from passthrough import names, syscalls
from passthrough.attributes import Entry
from passthrough.errors import os_error
from passthrough.idmap import Caller
from passthrough.inodes import ROOT, Inode
from passthrough.operations.base import Operations
from passthrough.readonly import changing

_NO_OVERWRITING: Final = syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE
_RENAME_FLAGS: Final = _NO_OVERWRITING | syscalls.RENAME_WHITEOUT


class EntryOperations(Operations):
    """What acts on one name in one directory."""

    def lookup(self, parent: int, name: bytes) -> Entry:
        """Find *name* in *parent*; a symlink is found itself, never its target.

        `.` finds *parent* itself. `..` of the root is the root, and leads nowhere above it.

        Raises:
            OSError: ESTALE for `..` of a directory that the host has moved out of the source;
                ELOOP for a mount of passfs.
        """
        if name in {names.DOT, names.DOT_DOT}:
            return self._grant(self._open_dot(self.inodes[parent], name))
        names.check(name)
        directory = self.inodes[parent].fd
        fd = syscalls.open_beside(directory, name)
        if fd == syscalls.ACROSS:
            fd = names.open_across(directory, name)
        return self._grant(fd)

    def forget(self, number: int, count: int) -> None:
        """Give back *count* lookups of inode *number*."""
        self.inodes.forget(number, count)

    @changing
    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        """Create a file, fifo, socket or device node, with *mode* as the caller's umask left it."""
        names.check(name)
        directory = self.inodes[parent]
        with self.ownership.acting_as(caller):
            os.mknod(name, mode, rdev, dir_fd=directory.fd)
        return self.lookup(parent, name)

    @changing
    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        """Create a directory, with *mode* as the caller's umask left it."""
        names.check(name)
        directory = self.inodes[parent]
        with self.ownership.acting_as(caller):
            os.mkdir(name, mode, dir_fd=directory.fd)
        return self.lookup(parent, name)

    @changing
    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Entry:
        """Create a symlink to *target*, which is stored as it is."""
        names.check(name)
        directory = self.inodes[parent]
        with self.ownership.acting_as(caller):
            os.symlink(target, name, dir_fd=directory.fd)
        return self.lookup(parent, name)

    @changing
    def link(self, number: int, parent: int, name: bytes) -> Entry:
        """Give inode *number*, a symlink itself included, one more name."""
        names.check(name)
        old, new_dir = self.inodes[number].path, self.inodes[parent].fd
        # It follows the link in /proc, and no further.
        os.link(old, name, dst_dir_fd=new_dir, follow_symlinks=True)
        return self.lookup(parent, name)

    @changing
    def unlink(self, parent: int, name: bytes) -> None:
        """Take a name away, unlink(2)."""
        names.check(name)
        os.unlink(name, dir_fd=self.inodes[parent].fd)

    @changing
    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory, rmdir(2)."""
        names.check(name)
        os.rmdir(name, dir_fd=self.inodes[parent].fd)

    @changing
    def rename(  # noqa: PLR0917 - what the request carries
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        """Rename with RENAME_* *flags*, rename(2); a whiteout is created, and the caller's."""
        names.check(name)
        names.check(new_name)
        if flags & ~_RENAME_FLAGS:
            raise os_error(errno.EINVAL)
        old_fd, new_fd = self.inodes[parent].fd, self.inodes[new_parent].fd
        if flags:
            creating = flags & syscalls.RENAME_WHITEOUT
            with self.ownership.acting_as(caller) if creating else contextlib.nullcontext():
                syscalls.renameat2(old_fd, name, new_fd, new_name, flags)
        else:
            os.rename(name, new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd)

    def readlink(self, number: int) -> bytes:
        """The text of a symlink."""
        return os.readlink(b"", dir_fd=self.inodes[number].fd)

    def _open_dot(self, inode: Inode, name: bytes) -> int:
        """An O_PATH descriptor of what `.` or `..` is in a directory."""
        if name == names.DOT or inode.number == ROOT:
            return os.dup(inode.fd)
        if inode.kind != stat.S_IFDIR:
            raise os_error(errno.ENOTDIR)
        return names.open_parent(self.inodes.root.fd, inode.fd)
