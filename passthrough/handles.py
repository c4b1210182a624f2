"""Handles: what the kernel has open, files and directory streams, by the number in its requests."""

import errno
import fcntl
import itertools
import mmap
import os
from collections.abc import Iterator
from typing import Generic, TypeVar

from passthrough.listing import OpenDirectory


class OpenFile:
    """A regular file that is open for reading or writing; owns its descriptor."""

    __slots__ = ("_fd", "inode_number", "status")

    def __init__(self, inode_number: int, fd: int, status: int = 0) -> None:
        self.inode_number = inode_number
        self._fd = fd
        self.status = status
        """Those of O_APPEND and O_DIRECT that the descriptor has."""

    @property
    def fd(self) -> int:
        """The descriptor, borrowed."""
        return self._fd

    @property
    def appends(self) -> bool:
        """Whether every write goes to the end."""
        return bool(fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_APPEND)

    def change_status(self, status: int) -> None:
        """Give the descriptor these of O_APPEND and O_DIRECT, and no others, fcntl(2)."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~(os.O_APPEND | os.O_DIRECT)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | status)
        self.status = status

    def read(self, offset: int, size: int) -> bytes:
        """Read at *offset*; fewer bytes than *size* mean the end of the file, pread(2)."""
        return os.pread(self._fd, size, offset)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write at *offset*, or at the end if the file was opened to append, pwrite(2)."""
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
        fd, self._fd = self._fd, -1
        os.close(fd)


class DirectFile(OpenFile):
    """A file whose descriptor has O_DIRECT: its buffers begin at a page, as open(2) wants it.

    Offset and size are the caller's, who is told of the host's requirements by the host's EINVAL.
    """

    __slots__ = ()

    def read(self, offset: int, size: int) -> bytes:
        """Read past the host's page cache, preadv(2)."""
        with mmap.mmap(-1, max(size, 1)) as buffer, memoryview(buffer)[:size] as view:
            return bytes(view[: os.preadv(self._fd, [view], offset)])

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write past the host's page cache, pwritev(2).

        What the kernel writes back of a mapped file ends where the file does, at a place that
        suits no device; that goes through the host's cache.
        """
        with mmap.mmap(-1, max(len(data), 1)) as buffer, memoryview(buffer)[: len(data)] as view:
            view[:] = data
            try:
                return os.pwritev(self._fd, [view], offset)
            except OSError as error:
                ends_with_file = offset + len(data) == os.fstat(self._fd).st_size
                if error.errno != errno.EINVAL or not ends_with_file:
                    raise
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        try:
            return os.pwrite(self._fd, data, offset)
        finally:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags)


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

    def replace(self, number: int, handle: Handle) -> None:
        """Keep *handle* as what is called *number*, which goes on to own the descriptor."""
        self._handles[number] = handle

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
