"""Directory streams: what the host lists, from any offset that was given as one.

An offset is the host's own (d_off, getdents(2)) wherever that names one place, so that it stays
good while others create and delete, and after the stream has gone elsewhere. Some file systems give
offsets to which lseek(2) does not lead back, beyond 2^63 (NFS hands on those of its server), and
some give several entries the same one (entries of one hash). Such a place gets an offset of our
own, or a reply that ends there would lose or repeat an entry.
"""

import ctypes
import errno
import itertools
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from passthrough.linux import syscalls
from passthrough.linux.errors import os_error

# What one getdents64 asks for: as much as glibc's readdir(3) does.
# A type of its own, made once: create_string_buffer would make one for each buffer.
_Entries: Final = ctypes.c_char * (32 * 1024)
# struct linux_dirent64 up to its name: d_ino, d_off, d_reclen, d_type; getdents64(2)
_RECORD: Final = struct.Struct("=QqHB")
# From st_mode to DT_*, as S_IFMT is laid out.
KIND_SHIFT: Final = 12
# Offsets from here up are ours. ext4 has none there but its end, as it lets no hash be the highest.
_OWN: Final = (1 << 63) - (1 << 32)


class Record(NamedTuple):
    """One entry of a directory as the host lists it."""

    start: int
    """The offset at which this entry is found again."""
    end: int
    """The offset of the entry after it."""
    number: int
    """d_ino: the host's inode number."""
    name: bytes
    kind: int = 0
    """d_type: DT_*, 0 where the host's file system does not say."""


class _Place(NamedTuple):
    """A place in a directory that an offset of our own stands for."""

    offset: int
    """Where the host has it."""
    passed: list[bytes]
    """The names there, in their order: the host has the same offset before and behind them."""
    length: int
    """How many of them the place is behind."""


class OpenDirectory:
    """A directory stream; owns its descriptor.

    The entries of the last request are kept until the next: the kernel goes on inside of a reply
    where its own caller had no room for all of it, and by then that may be deleted.
    """

    __slots__ = (
        *("_end", "_fd", "_next", "_own", "_place", "_places", "_shared", "_skipped", "_window"),
        "inode_number",
    )

    def __init__(self, inode_number: int, fd: int, *, shared: bool = False) -> None:
        """Take *fd*. Where it is *shared*, one may return to the start while another goes on."""
        self.inode_number = inode_number
        self._fd = fd
        self._shared = shared
        self._own = itertools.count(_OWN)
        self._places: dict[int, _Place] = {}
        self._window: list[Record] = []
        self._next = 0
        self._end = 0
        self._begin(0, _Place(0, [], 0))

    @property
    def fd(self) -> int:
        """The descriptor, borrowed."""
        return self._fd

    def read(self, offset: int) -> Iterator[Record]:
        """The entries from *offset* on, 0 being the start, which is read anew.

        Raises:
            OSError: as lseek(2) and getdents64(2) report it.
        """
        if offset == 0 or not self._go_on(offset):
            self._seek(offset)
        while self._next < len(self._window) or self._refill():
            self._next += 1
            yield self._window[self._next - 1]

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

    def _go_on(self, offset: int) -> bool:
        """Find *offset* among the entries at hand, and let go of those before it."""
        window, at = self._window, self._next
        # Nearly always the place behind what was read last, or that entry, which did not fit.
        if at < len(window) and window[at].start == offset:
            found = at
        elif at and window[at - 1].start == offset:
            found = at - 1
        elif offset == self._end:
            found = len(window)
        else:
            found = next((i for i, record in enumerate(window) if record.start == offset), -1)
            if found < 0:
                return False
        del window[:found]
        self._next = 0
        return True

    def _seek(self, offset: int) -> None:
        """Go where the host has *offset*."""
        if offset == 0 and not self._shared:
            self._places.clear()  # no place outlives a return to the start, rewinddir(3)
        place = self._places.get(offset)
        if place is None:
            if offset >= _OWN:
                raise os_error(errno.EINVAL)  # as lseek(2) says of the host's offset there
            place = _Place(offset, [], 0)
        os.lseek(self._fd, place.offset, os.SEEK_SET)
        self._begin(offset, place)

    def _begin(self, offset: int, place: _Place) -> None:
        """Have nothing at hand, and the descriptor at *place*, which *offset* stands for."""
        self._window = []
        self._next = 0
        self._end = offset
        self._place = place._replace(passed=place.passed[: place.length])
        self._skipped = frozenset(self._place.passed)

    def _refill(self) -> bool:
        """Have more entries at hand, if there are more."""
        before = len(self._window)
        while len(self._window) == before:
            buffer = _Entries()
            size = syscalls.getdents64(self._fd, buffer)
            if not size:
                return False
            for number, host_offset, kind, name in _entries(buffer.raw[:size]):
                self._append(number, host_offset, kind, name)
        return True

    def _append(self, number: int, host_offset: int, kind: int, name: bytes) -> None:
        """Have an entry at hand, behind which the host has *host_offset*."""
        if name in self._skipped:
            return
        start, self._end = self._end, self._offset_behind(host_offset, name)
        self._window.append(Record(start, self._end, number, name, kind))

    def _offset_behind(self, host_offset: int, name: bytes) -> int:
        """An offset that stands for one place only: the one behind *name*."""
        if host_offset == self._place.offset:
            self._place.passed.append(name)
        else:
            self._place = _Place(host_offset, [], 0)
            self._skipped = frozenset()
            if 0 < host_offset < _OWN:
                return host_offset
        own = next(self._own)
        if host_offset > 0:  # where lseek(2) may lead
            self._places[own] = self._place._replace(length=len(self._place.passed))
        return own


def _entries(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Inode number, offset of the place behind it, kind and name of each entry, getdents64(2)."""
    position = 0
    while position < len(data):
        number, offset, length, kind = _RECORD.unpack_from(data, position)
        # The name is padded with NULs up to the record's length.
        name_end = data.index(b"\0", position + _RECORD.size)
        yield number, offset, kind, data[position + _RECORD.size : name_end]
        position += length
