"""PassthroughFs: one method per FUSE operation, on one host directory.

Plain and synchronous: a method does its system calls and returns, or raises the OSError that the
caller of the operation shall see. It knows no transport; a session decodes requests into calls and
encodes what comes back. Permissions are the kernel's to check before a request is sent
(default_permissions); what a method adds is the caller's identity on what it creates.

Inode numbers and handle numbers are the ones that earlier replies gave. Every Entry that a method
returns counts as one lookup, which the session must give back with `forget` if it cannot deliver
the reply. Names are bytes and single components. Only regular files and directories are ever
opened for real: opening a device, fifo or socket here would act on the host's (CVE-2020-35517).
"""

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator
from typing import Final

from passthrough import fdpath, names, opening, syscalls, xattrs
from passthrough.attributes import OMIT, Attributes, Changes, Entry, allows
from passthrough.cache import Cache
from passthrough.config import Config
from passthrough.credentials import ClearingPrivileges
from passthrough.decisions import decide
from passthrough.errors import os_error
from passthrough.handles import DirectFile, HandleTable, OpenDirectory, OpenFile, Record
from passthrough.idmap import Caller
from passthrough.inodes import ROOT, Inode, InodeTable
from passthrough.opening import OpenFlags
from passthrough.ownership import Ownership
from passthrough.readonly import changing

log = logging.getLogger(__name__)

_LOOKUP_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_OVERWRITING: Final = syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE
_RENAME_FLAGS: Final = _NO_OVERWRITING | syscalls.RENAME_WHITEOUT


class PassthroughFs:
    """The operations on one source directory. Not for use by several mounts at once."""

    def __init__(self, config: Config, source_fd: int) -> None:
        """Serve *source_fd*, an O_PATH descriptor of a directory, which this object then owns."""
        self.config = decide(config).config
        self.cache = Cache(self.config)
        self.inodes = InodeTable(source_fd, packed=self.config.use_host_ino)
        self.files: HandleTable[OpenFile] = HandleTable()
        self.directories: HandleTable[OpenDirectory] = HandleTable()
        self.ownership = Ownership(self.config)
        self._flags = OpenFlags(self.config)

    def close(self) -> None:
        """Close every descriptor."""
        self.files.close()
        self.directories.close()
        self.inodes.close()

    # Names

    def lookup(self, parent: int, name: bytes) -> Entry:
        """Find *name* in *parent*; a symlink is found itself, never its target.

        `.` finds *parent* itself. `..` of the root is the root, and leads nowhere above it.

        Raises:
            OSError: ESTALE for `..` of a directory that the host has moved out of the source.
        """
        if name in {names.DOT, names.DOT_DOT}:
            return self._grant(self._open_dot(self.inodes[parent], name))
        names.check(name)
        fd = os.open(name, _LOOKUP_FLAGS, dir_fd=self.inodes[parent].fd)
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

    # Attributes

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

    # Files

    def open(self, number: int, flags: int, *, clear_privileges: bool = False) -> int:
        """Open a regular file; gives a handle number.

        A file whose last name the host has taken away answers ESTALE, so that the kernel looks its
        name up again and opens what it leads to now; who has it open may open it again (/proc).
        With *clear_privileges*, O_TRUNC takes the file's suid and sgid bits away: the kernel does
        so itself for every other change of content, but leaves O_TRUNC to the one who opens.
        """
        if self.config.readonly and opening.changes(flags):
            raise os_error(errno.EROFS)
        if flags & os.O_TRUNC:
            self._check_sealed()
        inode = self.inodes[number]
        self._check_linked(inode)
        with ClearingPrivileges() if clear_privileges else contextlib.nullcontext():
            fd = self._reopen(inode, stat.S_IFREG, flags)
        return self._keep(number, fd, flags)

    @changing
    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Entry, int]:
        """Create and open a regular file; gives its entry and a handle number.

        The kernel sends CREATE for names that it believes are free. If one is not, somebody was
        faster, and nobody has checked whether the caller may open that file. The answer then is
        EEXIST where the caller asked for it, else ESTALE, on which the kernel looks the name up
        and opens what is there under its own permission check.
        """
        names.check(name)
        if flags & os.O_TRUNC:
            self._check_sealed()
        directory = self.inodes[parent]
        try:
            with self.ownership.acting_as(caller):
                fd = os.open(name, self._flags.created(flags), mode, dir_fd=directory.fd)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            raise os_error(errno.ESTALE) from None
        try:
            # Through the descriptor, not the name: that may be another file's by now.
            entry = self._grant(os.open(fdpath.of(fd), os.O_PATH | os.O_CLOEXEC))
        except BaseException:
            os.close(fd)
            raise
        return entry, self._keep(entry.inode_number, fd, flags)

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Read at *offset*; fewer bytes than *size* mean the end of the file."""
        return self.files[handle].read(offset, size)

    def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write at *offset*, or at the end if the file was opened to append, pwrite(2)."""
        file = self.files[handle]
        if self.config.seal_size and (
            file.appends or offset + len(data) > os.fstat(file.fd).st_size
        ):
            raise os_error(errno.EPERM)
        return file.write(offset, data)

    def flush(self, handle: int) -> None:
        """A descriptor of the caller was closed: let the host's file system report as on close."""
        self.files[handle].flush()

    def fsync(self, handle: int, *, datasync: bool) -> None:
        """Bring a file to stable storage, fsync(2), or fdatasync(2) with *datasync*."""
        self.files[handle].sync(datasync=datasync)

    def release(self, handle: int) -> None:
        """The last descriptor of an open file is closed."""
        self.files.release(handle)

    # Directories

    def opendir(self, number: int) -> int:
        """Open a directory stream; gives a handle number."""
        fd = self._reopen(self.inodes[number], stat.S_IFDIR, os.O_RDONLY | os.O_DIRECTORY)
        return self.directories.add(OpenDirectory(number, fd))

    def readdirplus(self, handle: int, offset: int) -> Iterator[tuple[Record, Entry | None]]:
        """The names from *offset* on, each with its entry; none for `.` and `..`, which count not.

        Each entry counts as one lookup, also one that the session takes and cannot deliver. A name
        that vanished meanwhile is left out, and so is one that cannot be looked at: a dead mount
        below the source must not make the directory around it unusable.
        """
        directory = self.directories[handle]
        records = () if self.config.no_readdir else directory.read(offset)
        for record in records:
            if record.name in {names.DOT, names.DOT_DOT}:
                yield self._dot(directory, record), None
                continue
            try:
                entry = self.lookup(directory.inode_number, record.name)
            except FileNotFoundError:
                continue
            except OSError as error:
                log.warning("%r is left out of a listing: %s", record.name, error.strerror)
                continue
            yield record, entry

    def fsyncdir(self, handle: int, *, datasync: bool) -> None:
        """Bring a directory to stable storage."""
        self.directories[handle].sync(datasync=datasync)

    def releasedir(self, handle: int) -> None:
        """The last descriptor of a directory stream is closed."""
        self.directories.release(handle)

    # Extended attributes, xattr(7)

    def getxattr(self, number: int, name: bytes) -> bytes:
        """The value of one extended attribute."""
        return os.getxattr(self._with_xattr(number, name).path, name)

    @changing
    def setxattr(self, number: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set one extended attribute; *flags* are XATTR_CREATE and XATTR_REPLACE, setxattr(2)."""
        os.setxattr(self._with_xattr(number, name).path, name, value, flags)

    def listxattr(self, number: int, caller: Caller) -> list[bytes]:
        """The names of the extended attributes that *caller* may know of.

        The kernel checks who gets and sets `trusted.` ones, but not who lists them.
        """
        return xattrs.visible(os.listxattr(self._with_xattr(number).path), caller)

    @changing
    def removexattr(self, number: int, name: bytes) -> None:
        """Remove one extended attribute."""
        os.removexattr(self._with_xattr(number, name).path, name)

    # Below the operations

    def _grant(self, fd: int) -> Entry:
        """An entry for the file behind *fd*, an O_PATH descriptor that this method takes."""
        try:
            attributes = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        inode = self.inodes.grant(fd, attributes)
        timeouts = self.cache.timeouts(attributes.st_mode)
        return Entry(inode.number, attributes, timeouts, self.ownership.shown(attributes))

    def _attributes(self, inode: Inode) -> Attributes:
        attributes = os.fstat(inode.fd)
        number = self.inodes.shown_number(inode)
        _, timeout = self.cache.timeouts(attributes.st_mode)
        return Attributes(number, attributes, timeout, self.ownership.shown(attributes))

    def _reopen(self, inode: Inode, kind: int, flags: int) -> int:
        """Open *inode* for real, if it is of *kind*."""
        if inode.kind != kind:
            raise os_error(errno.EBADF)
        return os.open(inode.path, self._flags.existing(flags))

    def _check_linked(self, inode: Inode) -> None:
        if os.fstat(inode.fd).st_nlink == 0 and not any(
            file.inode_number == inode.number for file in self.files
        ):
            raise os_error(errno.ESTALE)

    def _keep(self, number: int, fd: int, flags: int) -> int:
        """Give *fd*, opened for a caller's *flags*, a handle number."""
        kind = DirectFile if self._flags.existing(flags) & os.O_DIRECT else OpenFile
        return self.files.add(kind(number, fd))

    def _check_sealed(self) -> None:
        if self.config.seal_size:
            raise os_error(errno.EPERM)

    def _with_xattr(self, number: int, name: bytes = b"") -> Inode:
        """Inode *number*, if there are extended attributes, and *name* is one that may pass."""
        if not self.config.xattr:
            raise os_error(errno.ENOSYS)  # which the kernel remembers, and never asks again
        xattrs.check(name)
        return self.inodes[number]

    def _truncate(self, inode: Inode, size: int, handle: int | None) -> None:
        if handle is not None:
            os.ftruncate(self.files[handle].fd, size)
            return
        fd = self._reopen(inode, stat.S_IFREG, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def _open_dot(self, inode: Inode, name: bytes) -> int:
        """An O_PATH descriptor of what `.` or `..` is in a directory."""
        if name == names.DOT or inode.number == ROOT:
            return os.dup(inode.fd)
        if inode.kind != stat.S_IFDIR:
            raise os_error(errno.ENOTDIR)
        return names.open_parent(self.inodes.root.fd, inode.fd)

    def _dot(self, directory: OpenDirectory, record: Record) -> Record:
        """`.` and `..` with the numbers that users know; the parent of the root is the root."""
        inode = self.inodes[directory.inode_number]
        if inode.number == ROOT or record.name == names.DOT:
            return record._replace(number=self.inodes.shown_number(inode))
        return record._replace(number=self.inodes.shown_neighbour(inode, record.number))
