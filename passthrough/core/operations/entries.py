"""Names in directories: looked up, given and taken away."""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from passthrough.core import names
from passthrough.core.inode_file import Inode
from passthrough.core.inodes import ROOT
from passthrough.core.operations.base import Operations
from passthrough.core.readonly import changing
from passthrough.identity.attributes import Entry
from passthrough.identity.idmap import Caller
from passthrough.linux import fdpath, syscalls
from passthrough.linux.errors import os_error

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
        inode = self.inodes[parent]
        if name in names.DOTS:
            return self._grant(self._open_dot(inode, name), None)
        names.check(name)
        if self._is_hidden(inode):
            raise os_error(errno.ENOENT)
        fd = inode.find(name)
        if fd == syscalls.MOUNT_POINT:
            with inode.opened() as directory:
                return self._grant_across(directory, name)
        return self._grant(fd, inode.place)

    def forget(self, number: int, count: int) -> None:
        """Give back *count* lookups of inode *number*."""
        gone = self.inodes.forget(number, count)
        if gone is None:
            return
        if gone in self._unopened:
            self.files.release(self._unopened.pop(gone))
        if gone in self._streams:
            self.directories.release(self._streams.pop(gone)[0])

    @changing
    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        """Create a file, fifo, socket or device node, with *mode* as the caller's umask left it."""
        names.check(name)
        self.ownership.check_node(mode)
        guard = self.ownership.acting_as(caller, mode)
        with self._changing(parent).opened() as directory, guard:
            os.mknod(name, mode, rdev, dir_fd=directory)
        return self.lookup(parent, name)

    @changing
    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        """Create a directory, with *mode* as the caller's umask left it."""
        names.check(name)
        with self._changing(parent).opened() as directory, self.ownership.acting_as(caller):
            os.mkdir(name, mode, dir_fd=directory)
        return self.lookup(parent, name)

    @changing
    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Entry:
        """Create a symlink to *target*, which is stored as it is."""
        names.check(name)
        with self._changing(parent).opened() as directory, self.ownership.acting_as(caller):
            os.symlink(target, name, dir_fd=directory)
        return self.lookup(parent, name)

    @changing
    def link(self, number: int, parent: int, name: bytes) -> Entry:
        """Give inode *number*, a symlink itself included, one more name."""
        names.check(name)
        linked = self._changing(number)
        with linked.opened() as fd, self._changing(parent).opened() as directory:
            # It follows the link in /proc, and no further.
            os.link(fdpath.of(fd), name, dst_dir_fd=directory, follow_symlinks=True)
        return self.lookup(parent, name)

    @changing
    def unlink(self, parent: int, name: bytes) -> None:
        """Take a name away, unlink(2)."""
        self._remove(parent, name, os.unlink)

    @changing
    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory, rmdir(2)."""
        self._remove(parent, name, os.rmdir)

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
        if flags & syscalls.RENAME_WHITEOUT:
            self.ownership.check_node(stat.S_IFCHR)
        new_inode = self._changing(new_parent)
        with self._changing(parent).opened() as old, new_inode.opened() as new:
            self.ownership.check_named(old, name)
            self.ownership.check_named(new, new_name)
            if flags:
                creating = flags & syscalls.RENAME_WHITEOUT
                with self.ownership.acting_as(caller) if creating else contextlib.nullcontext():
                    syscalls.renameat2(old, name, new, new_name, flags)
                return
            with self.inodes.removing(new_inode.place, new, new_name):
                os.rename(name, new_name, src_dir_fd=old, dst_dir_fd=new)

    def readlink(self, number: int) -> bytes:
        """The text of a symlink."""
        with self.inodes.opened(number) as fd:
            return os.readlink(b"", dir_fd=fd)

    def _remove(self, parent: int, name: bytes, call: Callable[..., None]) -> None:
        names.check(name)
        inode = self._changing(parent)
        with inode.opened() as directory, self.inodes.removing(inode.place, directory, name):
            self.ownership.check_named(directory, name)
            call(name, dir_fd=directory)

    def _grant_across(self, directory_fd: int, name: bytes) -> Entry:
        """Find *name*, which something is mounted on; the mount may be gone by now.

        Raises:
            OSError: EXDEV, it is a file, which cannot be shown as empty; as names.open_across.
        """
        fd = names.open_across(directory_fd, name)
        if self._hides_submounts and not os.path.isdir(fdpath.of(fd)):
            os.close(fd)
            raise os_error(errno.EXDEV)
        entry = self._grant(fd, None)
        entry.submount = not self._hides_submounts
        return entry

    def _open_dot(self, inode: Inode, name: bytes) -> int:
        """An O_PATH descriptor of what `.` or `..` is in a directory."""
        with inode.opened() as fd:
            if name == names.DOT or inode.number == ROOT:
                return os.dup(fd)
            if inode.kind != stat.S_IFDIR:
                raise os_error(errno.ENOTDIR)
            with self.inodes.opened(ROOT) as root:
                return names.open_parent(root, fd)
