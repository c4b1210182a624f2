"""Open files: opened, created, read, written, brought to stable storage."""

import contextlib
import errno
import fcntl
import os
import stat

from passthrough.core import names, opening
from passthrough.core.handles import DirectFile, OpenFile
from passthrough.core.inode_file import Inode
from passthrough.core.locks import Target
from passthrough.core.mount_devices import Place
from passthrough.core.operations.base import Operations
from passthrough.core.readonly import changing
from passthrough.identity.attributes import PRIVILEGES, Entry
from passthrough.identity.idmap import Caller
from passthrough.linux import fdpath
from passthrough.linux.errors import os_error


class FileOperations(Operations):
    """What opens a regular file, and what acts on an open one."""

    def open(
        self,
        number: int,
        flags: int,
        *,
        clear_privileges: bool = False,
        caller: Caller | None = None,
    ) -> int:
        """Open a regular file; gives a handle number.

        A file whose last name the host has taken away answers ESTALE, so that the kernel looks its
        name up again and opens what it leads to now; who has it open may open it again (/proc).
        With *clear_privileges*, O_TRUNC takes the file's suid and sgid bits away: the kernel does
        so itself for every other change of content, but leaves O_TRUNC to the one who opens.
        *caller* as in `keeps_sgid`.
        """
        if self.config.readonly and opening.changes(flags):
            raise os_error(errno.EROFS)
        if flags & os.O_TRUNC:
            self._check_sealed()
        inode = self.inodes[number]
        self._check_linked(inode)
        if self.ownership.may_lack_owners:
            self.ownership.check_open(inode.stat(), flags)
        if clear_privileges or (self.ownership.restricted and flags & os.O_TRUNC):
            with self._clearing(number, inode.stat(), caller):
                fd = self._reopen(inode, stat.S_IFREG, flags)
        else:
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
        inode = self._changing(parent)
        try:
            guard = self.ownership.acting_as(caller, mode)
            with inode.opened() as directory, guard:
                fd = os.open(name, self._flags.created(flags), mode, dir_fd=directory)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            raise os_error(errno.ESTALE) from None
        return self._created(fd, flags, inode.place)

    @changing
    def tmpfile(self, parent: int, mode: int, flags: int, caller: Caller) -> tuple[Entry, int]:
        """Create and open a regular file without a name in *parent*, O_TMPFILE of open(2).

        Gives its entry and a handle number. `link` may give it a name later.
        """
        inode = self._changing(parent)
        with inode.opened() as directory, self.ownership.acting_as(caller, mode):
            fd = os.open(names.DOT, self._flags.unnamed(flags), mode, dir_fd=directory)
        entry, handle = self._created(fd, flags, inode.place)
        with contextlib.suppress(OSError):  # at worst its number goes to the next file
            # Not by a copy: who could write by it would keep the file from being executed.
            held = os.open(fdpath.of(fd), os.O_PATH | os.O_CLOEXEC)
            self.inodes.pin(held, inode.place)
        return entry, handle

    def read(self, handle: int, offset: int, size: int, flags: int | None = None) -> bytes:
        """Read at *offset*; fewer bytes than *size* mean the end of the file.

        *flags* are those that the file has by now, open(2); None if it has those that it was
        opened with.
        """
        file = self.files[handle]
        if flags is not None and (flags := self._flags.of_request(flags)) != file.flags:
            file = file.following(flags)
        return file.read(offset, size)

    def write(
        self,
        handle: int,
        offset: int,
        data: bytes | memoryview,
        flags: int | None = None,
        *,
        clear_privileges: bool = False,
        caller: Caller | None = None,
    ) -> int:
        """Write at *offset*, pwrite(2), or at the end with O_APPEND; *flags* as for `read`.

        With *clear_privileges*, the file loses its suid and sgid bits, as it does for a caller
        without CAP_FSETID; *caller* as in `keeps_sgid`.
        """
        file = self.files[handle]
        flags = file.flags if flags is None else self._flags.of_request(flags)
        if self.config.seal_size and (
            flags & os.O_APPEND or offset + len(data) > os.fstat(file.fd).st_size
        ):
            raise os_error(errno.EPERM)
        file = file.following(flags)
        # Looked at first, because it is cheaper than two changes of capabilities.
        clears = clear_privileges or self.ownership.restricted
        if clears and (found := os.fstat(file.fd)).st_mode & PRIVILEGES:
            with self._clearing(file.inode_number, found, caller):
                return file.write(offset, data, flags)
        return file.write(offset, data, flags)

    def flush(self, handle: int, owner: int | None = None) -> None:
        """A descriptor of the caller was closed: let the host's file system report as on close.

        *owner* is whose locks on the file end with that, whatever is reported.
        """
        file = self.files[handle]
        try:
            file.flush()
        finally:
            if owner is not None:
                self.locks.closed(file.inode_number, owner)

    def fsync(self, handle: int, *, datasync: bool) -> None:
        """Bring a file to stable storage, fsync(2), or fdatasync(2) with *datasync*."""
        self.files[handle].sync(datasync=datasync)

    def open_for_writing(self, number: int) -> bool:
        """Return whether a caller has inode *number* open to write to it."""
        return any(
            file.inode_number == number
            and fcntl.fcntl(file.fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            for file in self.files
        )

    def unopened(self, number: int) -> int:
        """The handle of inode *number* for who never opened it (`no_open`), until it is forgotten.

        Whether its user may write, the kernel has checked; here it is opened for all that the host
        allows.
        """
        inode = self.inodes[number]
        handle = self._unopened.get(inode)
        if handle is None:
            try:
                if self.ownership.may_lack_owners:
                    self.ownership.check_change(inode.stat())
                fd = self._reopen(inode, stat.S_IFREG, os.O_RDWR)
            except OSError as error:
                if error.errno not in {errno.EROFS, errno.ETXTBSY, errno.EACCES, errno.EPERM}:
                    raise
                fd = self._reopen(inode, stat.S_IFREG, os.O_RDONLY)
            handle = self._keep(number, fd, os.O_RDWR)
            first = self._unopened.setdefault(inode, handle)
            if first != handle:  # another thread was faster
                self.files.release(handle)
                handle = first
        return handle

    def release(self, handle: int, *, unlock: bool = False) -> None:
        """The last descriptor of an open file is closed; with *unlock* it may have an flock.

        That would end with the host's descriptor, unless the kernel has made this file the one that
        all who have it open read and write through.
        """
        file = self.files[handle]
        try:
            if unlock:
                self.locks.flock(Target(file.inode_number, handle, file.fd), fcntl.F_UNLCK)
            self.locks.released(file.inode_number, handle)
        finally:
            self.files.release(handle)

    def _check_linked(self, inode: Inode) -> None:
        if inode.stat().st_nlink == 0 and not any(
            file.inode_number == inode.number for file in self.files
        ):
            raise os_error(errno.ESTALE)

    def _created(self, fd: int, flags: int, place: Place) -> tuple[Entry, int]:
        """The entry and the handle number of the file that *fd*, which this takes, has made.

        *place* is that of the directory in which it was made.
        """
        try:
            # Through the descriptor, not the name: that may be another file's by now.
            held = os.open(fdpath.of(fd), os.O_PATH | os.O_CLOEXEC)
            # What is new has nothing mounted on it.
            entry = self._grant(held, place)
        except BaseException:
            os.close(fd)
            raise
        return entry, self._keep(entry.inode_number, fd, flags)

    def _keep(self, number: int, fd: int, flags: int) -> int:
        """Give *fd*, opened for a caller's *flags*, a handle number."""
        flags = self._flags.of_request(flags)
        kind = DirectFile if flags & os.O_DIRECT else OpenFile
        return self.files.add(kind(number, fd, flags))
