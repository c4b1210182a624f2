"""Directory streams: opened, read, brought to stable storage."""

import contextlib
import errno
import logging
import os
import stat
import threading
from collections.abc import Iterator
from typing import Final

from passthrough.core import names
from passthrough.core.inode_file import Inode
from passthrough.core.inodes import ROOT
from passthrough.core.listing import KIND_SHIFT, OpenDirectory, Record
from passthrough.core.mount_devices import Place
from passthrough.core.operations.entries import EntryOperations
from passthrough.identity.attributes import Entry
from passthrough.linux import syscalls

log = logging.getLogger(__name__)

# What says nothing about a file, but that nothing can be looked at now.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class DirectoryOperations(EntryOperations):
    """What acts on an open directory; a listing looks its names up."""

    def opendir(self, number: int) -> int:
        """Open a directory stream; gives a handle number."""
        inode = self.inodes[number]
        if self.ownership.may_lack_owners:
            self.ownership.check_open(inode.stat(), os.O_RDONLY)
        fd = self._reopen(inode, stat.S_IFDIR, os.O_RDONLY | os.O_DIRECTORY)
        return self.directories.add(OpenDirectory(number, fd))

    def readdirplus(
        self, handle: int, offset: int, *, known: bool = True
    ) -> Iterator[tuple[Record, Entry | None]]:
        """The names from *offset* on, each with its entry; none for `.` and `..`, which count not.

        There is none either for a name that the caller which opened the stream may not look up.
        With *known* false, there is none for a file that the kernel was told of a moment ago.

        Each entry counts as one lookup, also one that the session takes and cannot deliver. A name
        that vanished meanwhile is left out, and so is one that cannot be looked at: a dead mount
        below the source must not make the directory around it unusable. Where descriptors or
        memory have run out the listing fails: who copies a directory must not believe it was all.

        Raises:
            OSError: EMFILE, ENFILE, ENOMEM, a name cannot be looked up; as OpenDirectory.read.
        """
        directory = self.directories[handle]
        inode = self.inodes[directory.inode_number]
        records = () if self.config.no_readdir else directory.read(offset)
        for record in records:
            if record.name in names.DOTS:
                yield self._dot(directory, record), None
                continue
            if self._is_hidden(inode):
                continue
            if not known and (just_told := self._just_told(inode, record)):
                yield just_told, None
                continue
            try:
                entry = self._entry(directory, inode.place, record.name)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    raise
                if self.squashes and error.errno == errno.EACCES:
                    # A squashed caller may list a directory that it may not search.
                    yield self._unlooked(inode, record), None
                    continue
                self._report_left_out(record.name, error)
                continue
            yield record, entry

    def readdir(self, handle: int, offset: int) -> Iterator[Record]:
        """The names from *offset* on, with the numbers that users know; nothing is looked up.

        The number is that of what the directory itself has by this name: where something is mounted
        on it, of what lies beneath, as on any file system.
        """
        directory = self.directories[handle]
        if self.config.no_readdir:
            return
        inode = self.inodes[directory.inode_number]
        for record in directory.read(offset):
            if record.name in names.DOTS:
                yield self._dot(directory, record)
            elif not self._is_hidden(inode):
                yield self._unlooked(inode, record)

    @contextlib.contextmanager
    def unopened_stream(self, number: int) -> Iterator[int]:
        """A guard that lends the handle of directory *number* to who never opened it.

        It stays open until the directory is forgotten (`no_opendir`), and is lent to one at a time:
        offsets that are its own have no meaning elsewhere.
        """
        inode = self.inodes[number]
        stream = self._streams.get(inode)
        if stream is None:
            fd = self._reopen(inode, stat.S_IFDIR, os.O_RDONLY | os.O_DIRECTORY)
            handle = self.directories.add(OpenDirectory(number, fd, shared=True))
            own = (handle, threading.Lock())
            stream = self._streams.setdefault(inode, own)
            if stream is not own:  # another thread was faster
                self.directories.release(handle)
        handle, lock = stream
        with lock:
            yield handle

    def fsyncdir(self, handle: int, *, datasync: bool) -> None:
        """Bring a directory to stable storage."""
        self.directories[handle].sync(datasync=datasync)

    def releasedir(self, handle: int) -> None:
        """The last descriptor of a directory stream is closed."""
        self.directories.release(handle)

    def _just_told(self, directory: Inode, record: Record) -> Record | None:
        """*record* as users know it, if the kernel knows the file; where that errs, it will ask."""
        inode = self.inodes.neighbour(directory, record.number)
        if inode is None or not self.freshness.lasts(inode.told):
            return None
        kind = inode.kind >> KIND_SHIFT
        return record._replace(number=self.inodes.shown_number(inode), kind=kind)

    def _report_left_out(self, name: bytes, error: OSError) -> None:
        """Log the first name of each cause: the next listing would say the same again."""
        if error.errno not in self._left_out:
            self._left_out.add(error.errno)
            log.warning(
                "%r is left out of a listing: %s; this is said once for each cause",
                *(name, error.strerror),
            )

    def _entry(self, directory: OpenDirectory, place: Place, name: bytes) -> Entry:
        """Look *name* up beneath a stream's own descriptor: its inode may have to be opened."""
        fd = syscalls.open_same_mount(directory.fd, name)
        if fd == syscalls.MOUNT_POINT:
            return self._grant_across(directory.fd, name)
        return self._grant(fd, place)

    def _unlooked(self, directory: Inode, record: Record) -> Record:
        """Return *record* with the number that users know, of a name that is not looked up."""
        number = self.inodes.shown_neighbour(directory, record.number)
        return record._replace(number=number)

    def _dot(self, directory: OpenDirectory, record: Record) -> Record:
        """`.` and `..` with the numbers that users know; the parent of the root is the root."""
        inode = self.inodes[directory.inode_number]
        if inode.number == ROOT or record.name == names.DOT:
            return record._replace(number=self.inodes.shown_number(inode))
        return record._replace(number=self.inodes.shown_neighbour(inode, record.number))
