"""Requests of the kernel, taken apart: one object that holds one request after the other.

Every way to get at a request's parts checks that they are there. What is not a request as
linux/fuse.h has it raises `MalformedError` and nothing else, so that it costs an errno and never
the mount.
"""

import errno
import mmap
from collections.abc import Iterator
from struct import Struct
from typing import Final

from passthrough.identity.idmap import Caller, ContainerId
from passthrough.session.wire import FIXED, IN_HEADER

_EXTENSION_UNIT: Final = 8
_LONG: Final = 16 * mmap.PAGESIZE
# By plain numbers: a member of an enumeration is slower to find by the number that it equals.
_FIXED_SIZE: Final = {int(opcode): fixed.size for opcode, fixed in FIXED.items()}


class MalformedError(OSError):
    """A request whose bytes are not what its opcode wants; its answer is EIO."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EIO, what)


class Request:
    """One request, in a buffer that is filled anew for the next one.

    A view of the data of one request is good until the next is read.
    """

    __slots__ = (
        *("opcode", "unique", "nodeid", "uid", "gid", "pid", "length"),
        *("_buffer", "_view", "_start", "_fixed_at", "_tail_at", "_end"),
        "into",
    )

    def __init__(self, buffer: mmap.mmap, start: int) -> None:
        """Take requests that lie in *buffer* from byte *start* on.

        Its memory goes with the last view of it: a traceback may hold one.
        """
        self._buffer = buffer
        self._view = memoryview(buffer)
        self.into = (self._view[start:],)
        """Where the next request is to be read to."""
        self._start = start
        self._fixed_at = start + IN_HEADER.size
        self.clear()

    def clear(self) -> None:
        """Hold no request."""
        self._tail_at = self._end = self._fixed_at
        self.length = self.opcode = self.unique = self.nodeid = self.uid = self.gid = self.pid = 0

    def decode(self) -> None:
        """Read the header of what has come, `length` bytes of it.

        Raises:
            MalformedError: it is shorter or longer than it says; `unique` is nought where there is
                not even a header.
        """
        if self.length < IN_HEADER.size:
            self.unique = self.opcode = 0
            raise MalformedError(f"a request of {self.length} bytes has no header")
        header = IN_HEADER.unpack_from(self._buffer, self._start)
        length, self.opcode, self.unique, self.nodeid, self.uid, self.gid, self.pid, more = header
        self._tail_at = self._fixed_at + _FIXED_SIZE.get(self.opcode, 0)
        self._end = self._start + length - more * _EXTENSION_UNIT
        if length != self.length or self._tail_at > self._end:
            raise MalformedError(f"{self.length} bytes of opcode {self.opcode} say {length}")

    def fields(self, fixed: Struct) -> tuple[int, ...]:
        """What the request begins with, by its row in `FIXED`."""
        return fixed.unpack_from(self._buffer, self._fixed_at)

    def name(self) -> bytes:
        """The one name, or other text, that ends the request."""
        text, found, more = self._buffer[self._tail_at : self._end].partition(b"\0")
        if more or not found:
            raise MalformedError("the request does not end with one text")
        return text

    def names(self) -> tuple[bytes, bytes]:
        """The two texts that end the request."""
        parts = self._buffer[self._tail_at : self._end].split(b"\0")
        try:
            first, second, nothing = parts
        except ValueError:
            raise MalformedError("the request does not end with two texts") from None
        if nothing:
            raise MalformedError("the request's last text does not end")
        return first, second

    def named_value(self, size: int) -> tuple[bytes, bytes]:
        """A name, and *size* bytes after it, that end the request."""
        name, found, value = self._buffer[self._tail_at : self._end].partition(b"\0")
        if not found or len(value) != size:
            raise MalformedError(f"the request does not end with a name and {size} bytes")
        return name, value

    def data(self, size: int) -> memoryview:
        """*size* bytes that end the request, where they lie: good until the next request."""
        if self._end - self._tail_at != size:
            raise MalformedError(f"the request has {self._end - self._tail_at} bytes, not {size}")
        return self._view[self._tail_at : self._end]

    def rows(self, row: Struct, count: int) -> Iterator[tuple[int, ...]]:
        """*count* structures that follow one another, to be gone through before the next request.

        One by one: there may be as many as 65,000, and their sum would stay in memory.
        """
        end = self._tail_at + row.size * count
        if end > self._end:
            raise MalformedError(f"the request has no {count} rows")
        return row.iter_unpack(self._view[self._tail_at : end])

    def done(self) -> None:
        """Keep nothing of a request that needs no answer, nor the pages that a long one has filled.

        For one whose like comes seldom: to fill a page anew costs more than it is worth.
        """
        if self.length > _LONG:
            self._buffer.madvise(mmap.MADV_DONTNEED)
        self.clear()

    def caller(self) -> Caller:
        """Who asks, as the volume's users are known."""
        return Caller(ContainerId(self.uid), ContainerId(self.gid))
