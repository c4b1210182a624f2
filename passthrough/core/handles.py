"""Handles: what the kernel has open, files and directory streams, by the number in its requests.

A file has a second descriptor for O_DIRECT, opened when a request first differs from the opening:
F_SETFL would change the first one under threads that are about to use it.
"""

import errno
import fcntl
import itertools
import mmap
import os
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from passthrough.core.listing import OpenDirectory
from passthrough.linux import fdpath

# What a descriptor is opened with that is like another one but for O_DIRECT.
_OF_TWINS: Final = os.O_ACCMODE | os.O_SYNC | os.O_NOATIME | os.O_DIRECT
_OF_WRITES: Final = os.O_APPEND | os.O_SYNC


class OpenFile:
    """A regular file that is open for reading or writing; owns its descriptor.

    Its *flags* are those of open(2) that single reads and writes follow. fcntl(2) changes them as
    long as the file is open; then each request brings its own. O_APPEND and O_SYNC go with a
    write. O_DIRECT cannot, so there is a second descriptor for those who want it otherwise:
    changing the first one under others, who are just about to use it, would make theirs fail.
    """

    __slots__ = ("_fd", "_twins", "flags", "inode_number")

    direct = False
    """Whether the host's page cache is left out."""

    def __init__(self, inode_number: int, fd: int, flags: int = 0) -> None:
        self.inode_number = inode_number
        self._fd = fd
        self.flags = flags
        self._twins: list[OpenFile] = []

    @property
    def fd(self) -> int:
        """The descriptor, borrowed."""
        return self._fd

    def following(self, flags: int) -> "OpenFile":
        """This file, or its second descriptor, by what *flags* have of O_DIRECT.

        Raises:
            OSError: as open(2) reports it.
        """
        if bool(flags & os.O_DIRECT) is self.direct:
            return self
        if not self._twins:
            # Two threads at once open two, and the first one serves.
            wanted = fcntl.fcntl(self._fd, fcntl.F_GETFL) & _OF_TWINS ^ os.O_DIRECT
            kind = OpenFile if self.direct else DirectFile
            fd = os.open(fdpath.of(self._fd), wanted | os.O_CLOEXEC)
            self._twins.append(kind(self.inode_number, fd, self.flags))
        return self._twins[0]

    def read(self, offset: int, size: int) -> bytes:
        """Read at *offset*; fewer bytes than *size* mean the end of the file, pread(2)."""
        return os.pread(self._fd, size, offset)

    def write(self, offset: int, data: bytes | memoryview, flags: int = 0) -> int:
        """Write at *offset*, pwrite(2), or as O_APPEND and O_SYNC in *flags* say, pwritev2(2)."""
        if flags & _OF_WRITES:
            return os.pwritev(self._fd, [data], offset, _write_flags(flags))
        return os.pwrite(self._fd, data, offset)

    def flush(self) -> None:
        """Let the host's file system report what it does on close(2)."""
        os.close(os.dup(self._fd))

    def sync(self, *, datasync: bool) -> None:
        """Bring it to stable storage, fsync(2), or fdatasync(2) with *datasync*."""
        if datasync:
            os.fdatasync(self._fd)
        else:
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the descriptor.

        Raises:
            OSError: what the host's file system reports; the descriptor is gone all the same.
        """
        while self._twins:
            self._twins.pop().close()
        fd, self._fd = self._fd, -1
        os.close(fd)


class DirectFile(OpenFile):
    """A file whose descriptor has O_DIRECT: its buffers begin at a page, as open(2) wants it.

    Offset and size are the caller's, who is told of the host's requirements by the host's EINVAL.
    """

    __slots__ = ()
    direct = True

    def read(self, offset: int, size: int) -> bytes:
        """Read past the host's page cache, preadv(2)."""
        with mmap.mmap(-1, max(size, 1)) as buffer, memoryview(buffer)[:size] as view:
            return bytes(view[: os.preadv(self._fd, [view], offset)])

    def write(self, offset: int, data: bytes | memoryview, flags: int = 0) -> int:
        """Write past the host's page cache, pwritev2(2).

        What the kernel writes back of a mapped file ends where the file does, at a place that
        suits no device; that goes through the host's cache.
        """
        with mmap.mmap(-1, max(len(data), 1)) as buffer, memoryview(buffer)[: len(data)] as view:
            view[:] = data
            try:
                return os.pwritev(self._fd, [view], offset, _write_flags(flags))
            except OSError as error:
                ends_with_file = offset + len(data) == os.fstat(self._fd).st_size
                if error.errno != errno.EINVAL or not ends_with_file:
                    raise
        return self.following(flags & ~os.O_DIRECT).write(offset, data, flags)


def _write_flags(flags: int) -> int:
    """The RWF_* of one write by a file's flags."""
    asked = os.RWF_APPEND if flags & os.O_APPEND else 0
    if flags & os.O_SYNC == os.O_SYNC:
        return asked | os.RWF_SYNC
    return asked | os.RWF_DSYNC if flags & os.O_DSYNC else asked


Handle = TypeVar("Handle", OpenFile, OpenDirectory)


class HandleTable(Generic[Handle]):
    """Open files or open directories by handle number; a number is never given twice."""

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        # next() and single dictionary operations are atomic: no lock is needed.
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._handles)

    def __iter__(self) -> Iterator[Handle]:
        return iter(list(self._handles.values()))

    def __getitem__(self, number: int) -> Handle:
        """The handle called *number*.

        Raises:
            OSError: EBADF if there is none.
        """
        try:
            return self._handles[number]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def add(self, handle: Handle) -> int:
        """Keep *handle*, and give it a number."""
        number = next(self._numbers)
        self._handles[number] = handle
        return number

    def release(self, number: int) -> None:
        """Close the handle called *number*, and forget it.

        Raises:
            OSError: EBADF if there is none; what the host's file system reports on close.
        """
        handle = self._handles.pop(number, None)
        if handle is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        handle.close()

    def close(self) -> None:
        """Close every handle."""
        while self._handles:
            _, handle = self._handles.popitem()
            handle.close()
