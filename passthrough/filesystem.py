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

from passthrough import syscalls, xattrs
from passthrough.attributes import OMIT, Attributes, Changes, Entry, allows
from passthrough.cache import Cache
from passthrough.config import Config
from passthrough.credentials import ActingAs, Caller, ClearingPrivileges
from passthrough.errors import os_error
from passthrough.handles import HandleTable, OpenDirectory, OpenFile, Record
from passthrough.inodes import ROOT, Inode, InodeTable
from passthrough.opening import OpenFlags

log = logging.getLogger(__name__)

_LOOKUP_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_FLAGS: Final = (
    syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE | syscalls.RENAME_WHITEOUT
)


class PassthroughFs:
    """The operations on one source directory. Not for use by several mounts at once."""

    def __init__(self, config: Config, source_fd: int) -> None:
        """Serve *source_fd*, an O_PATH descriptor of a directory, which this object then owns."""
        self.cache = Cache(config)
        self.inodes = InodeTable(source_fd)
        self.files: HandleTable[OpenFile] = HandleTable()
        self.directories: HandleTable[OpenDirectory] = HandleTable()
        self._flags = OpenFlags(config)

    def close(self) -> None:
        """Close every descriptor."""
        self.files.close()
        self.directories.close()
        self.inodes.close()

    # Names

    def lookup(self, parent: int, name: bytes) -> Entry:
        """Find *name* in *parent*; a symlink is found itself, never its target."""
        _check_component(name)
        fd = os.open(name, _LOOKUP_FLAGS, dir_fd=self.inodes[parent].fd)
        return self._grant(fd)

    def forget(self, number: int, count: int) -> None:
        """Give back *count* lookups of inode *number*."""
        self.inodes.forget(number, count)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        """Create a file, fifo, socket or device node, with *mode* as the caller's umask left it."""
        _check_component(name)
        directory = self.inodes[parent]
        with ActingAs(caller):
            os.mknod(name, mode, rdev, dir_fd=directory.fd)
        return self.lookup(parent, name)

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        """Create a directory, with *mode* as the caller's umask left it."""
        _check_component(name)
        directory = self.inodes[parent]
        with ActingAs(caller):
            os.mkdir(name, mode, dir_fd=directory.fd)
        return self.lookup(parent, name)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Entry:
        """Create a symlink to *target*, which is stored as it is."""
        _check_component(name)
        directory = self.inodes[parent]
        with ActingAs(caller):
            os.symlink(target, name, dir_fd=directory.fd)
        return self.lookup(parent, name)

    def link(self, number: int, parent: int, name: bytes) -> Entry:
        """Give inode *number*, a symlink itself included, one more name."""
        _check_component(name)
        inode = self.inodes[number]
        os.link(
            inode.path, name, dst_dir_fd=self.inodes[parent].fd, follow_symlinks=True
        )  # follows the link in /proc, and no further
        return self.lookup(parent, name)

    def unlink(self, parent: int, name: bytes) -> None:
        """Take a name away, unlink(2)."""
        _check_component(name)
        os.unlink(name, dir_fd=self.inodes[parent].fd)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory, rmdir(2)."""
        _check_component(name)
        os.rmdir(name, dir_fd=self.inodes[parent].fd)

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
        _check_component(name)
        _check_component(new_name)
        if flags & ~_RENAME_FLAGS:
            raise os_error(errno.EINVAL)
        old_fd, new_fd = self.inodes[parent].fd, self.inodes[new_parent].fd
        if flags:
            creating = flags & syscalls.RENAME_WHITEOUT
            with ActingAs(caller) if creating else contextlib.nullcontext():
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

    def setattr(self, number: int, changes: Changes, handle: int | None = None) -> Attributes:
        """Change mode, owner, size and times, in this order: each may undo part of the one before.

        *handle* is the open file through which the caller truncates, if it does. A failure leaves
        the changes before it done.
        """
        inode = self.inodes[number]
        if changes.mode is not None:
            os.chmod(inode.path, changes.mode)
        if changes.uid is not None or changes.gid is not None:
            os.chown(inode.path, _or_same(changes.uid), _or_same(changes.gid))
        if changes.size is not None:
            self._truncate(inode, changes.size, handle)
        if changes.atime != OMIT or changes.mtime != OMIT:
            syscalls.utimensat(inode.path, changes.atime, changes.mtime)
        return self._attributes(inode)

    def access(self, number: int, mask: int, caller: Caller) -> bool:
        """Whether *caller* may do *mask*, access(2); its supplementary groups are not known here.

        Kernels that check permissions themselves never ask.
        """
        return allows(os.fstat(self.inodes[number].fd), mask, caller)

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
        inode = self.inodes[number]
        self._check_linked(inode)
        with ClearingPrivileges() if clear_privileges else contextlib.nullcontext():
            fd = self._reopen(inode, stat.S_IFREG, flags)
        return self.files.add(OpenFile(number, fd))

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Entry, int]:
        """Create and open a regular file; gives its entry and a handle number.

        The kernel sends CREATE for names that it believes are free. If one is not, somebody was
        faster, and nobody has checked whether the caller may open that file. The answer then is
        EEXIST where the caller asked for it, else ESTALE, on which the kernel looks the name up
        and opens what is there under its own permission check.
        """
        _check_component(name)
        directory = self.inodes[parent]
        try:
            with ActingAs(caller):
                fd = os.open(name, self._flags.created(flags), mode, dir_fd=directory.fd)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            raise os_error(errno.ESTALE) from None
        try:
            # Through the descriptor, not the name: that may be another file's by now.
            entry = self._grant(os.open(b"/proc/self/fd/%d" % fd, os.O_PATH | os.O_CLOEXEC))
        except BaseException:
            os.close(fd)
            raise
        return entry, self.files.add(OpenFile(entry.inode_number, fd))

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Read at *offset*; fewer bytes than *size* mean the end of the file."""
        return os.pread(self.files[handle].fd, size, offset)

    def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write at *offset*, or at the end if the file was opened to append, pwrite(2)."""
        return os.pwrite(self.files[handle].fd, data, offset)

    def flush(self, handle: int) -> None:
        """A descriptor of the caller was closed: let the host's file system report as on close."""
        os.close(os.dup(self.files[handle].fd))

    def fsync(self, handle: int, *, datasync: bool) -> None:
        """Bring a file to stable storage, fsync(2), or fdatasync(2) with *datasync*."""
        _sync(self.files[handle].fd, datasync=datasync)

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
        for record in directory.read(offset):
            if record.name in {b".", b".."}:
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
        _sync(self.directories[handle].fd, datasync=datasync)

    def releasedir(self, handle: int) -> None:
        """The last descriptor of a directory stream is closed."""
        self.directories.release(handle)

    # Extended attributes, xattr(7)

    def getxattr(self, number: int, name: bytes) -> bytes:
        """The value of one extended attribute."""
        xattrs.check(name)
        return os.getxattr(self.inodes[number].path, name)

    def setxattr(self, number: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set one extended attribute; *flags* are XATTR_CREATE and XATTR_REPLACE, setxattr(2)."""
        xattrs.check(name)
        os.setxattr(self.inodes[number].path, name, value, flags)

    def listxattr(self, number: int, caller: Caller) -> list[bytes]:
        """The names of the extended attributes that *caller* may know of.

        The kernel checks who gets and sets `trusted.` ones, but not who lists them.
        """
        return xattrs.visible(os.listxattr(self.inodes[number].path), caller)

    def removexattr(self, number: int, name: bytes) -> None:
        """Remove one extended attribute."""
        xattrs.check(name)
        os.removexattr(self.inodes[number].path, name)

    # Below the operations

    def _grant(self, fd: int) -> Entry:
        """An entry for the file behind *fd*, an O_PATH descriptor that this method takes."""
        try:
            attributes = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        inode = self.inodes.grant(fd, attributes)
        return Entry(inode.number, attributes, self.cache.timeouts(attributes.st_mode))

    def _attributes(self, inode: Inode) -> Attributes:
        attributes = os.fstat(inode.fd)
        number = inode.host_number if inode.number == ROOT else inode.number
        return Attributes(number, attributes, self.cache.timeouts(attributes.st_mode)[1])

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

    def _truncate(self, inode: Inode, size: int, handle: int | None) -> None:
        if handle is not None:
            os.ftruncate(self.files[handle].fd, size)
            return
        fd = self._reopen(inode, stat.S_IFREG, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def _dot(self, directory: OpenDirectory, record: Record) -> Record:
        """`..` of the root is the root: what lies above the source is nobody's business."""
        if directory.inode_number == ROOT:
            return record._replace(number=self.inodes.root.host_number)
        return record


def _check_component(name: bytes) -> None:
    if not name or b"/" in name or name in {b".", b".."}:
        raise os_error(errno.EINVAL)


def _or_same(number: int | None) -> int:
    """An id as chown(2) takes it: -1 leaves it as it is."""
    return -1 if number is None else number


def _sync(fd: int, *, datasync: bool) -> None:
    if datasync:
        os.fdatasync(fd)
    else:
        os.fsync(fd)
