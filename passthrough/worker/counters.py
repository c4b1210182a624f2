"""The counters of a volume: requests, errors, data and opens so far; inodes and open files now.

The threads of the worker count in memory behind the control page (control.py). core/counters.pyx
says what they count. The counters outlive the worker, and go on if another program takes over.

The memory has rows, for one thread each, and behind them the numbers of the present. A reader sums
the rows. It takes each number as it is, because a worker that is compromised can write the memory:
a number may be any one from 0 on.
"""

import errno
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from struct import Struct
from typing import Final, NamedTuple

from passthrough.session.abi import Opcode

VERSION: Final = 2
"""Of the layout."""
VERSION_AT: Final = 85
"""Where the control page has it. There is a zero if an older program has made the page."""
AT: Final = 4096

_ROWS: Final = 16
_OPCODES: Final = 54
_ERRORS: Final = 288
_BUCKETS: Final = 31
_FIRST_BITS: Final = 8
_CELL: Final = 1 + _BUCKETS  # the sum of nanoseconds, and the buckets
_SUMS: Final = 4  # in the room of a cell
# Of a thread: sums, cells, errors.
_ROW: Final = Struct(f"<{_CELL + _OPCODES * _CELL + _ERRORS}Q")
_GAUGES: Final = Struct("<4Q")
_GAUGES_AT: Final = AT + _ROWS * _ROW.size
END: Final = _GAUGES_AT + _GAUGES.size


class Operation(NamedTuple):
    """The requests of one operation."""

    ns: int
    """Their times in all, in nanoseconds."""
    buckets: tuple[int, ...]
    """How many took less than each of `bounds_ns`, and no less than the bound before it.

    The last number is of those that no bound is above.
    """

    @property
    def requests(self) -> int:
        """Return how many there were."""
        return sum(self.buckets)


class Counters(NamedTuple):
    """What a volume has served since it was mounted, and what its worker holds now."""

    operations: Mapping[str, Operation]
    """By the name of the opcode, such as "LOOKUP"; those that there were. 0 are unknown ones."""
    errors: Mapping[str, int]
    """By the name of the errno, such as "ENOENT"; those that there were. 0 are unknown ones."""
    opens: int = 0
    """Regular files that the worker has opened for callers; none with no_open."""
    passing_opens: int = 0
    """Of them, those whose data the kernel passes through: it reads and writes by itself."""
    bytes_read: int = 0
    """By READ, from the worker."""
    bytes_written: int = 0
    """By WRITE, to the worker."""
    inodes: int = 0
    """Inodes that the kernel remembers or has open now, the root among them."""
    open_files: int = 0
    """Regular files that are open now, once for each open; with no_open those of the worker."""
    open_directories: int = 0
    """Directories that are open now, once for each open; none with no_opendir."""
    passing_files: int = 0
    """Open files whose data the kernel passes through now, once for each file."""

    @property
    def passing_share(self) -> float | None:
        """Return the share of opens that pass through, 0 to 1; None if nothing was opened."""
        return min(self.passing_opens / self.opens, 1.0) if self.opens else None


def bounds_ns() -> tuple[int, ...]:
    """Return the bounds of all buckets but the last, in nanoseconds."""
    return tuple(1 << bits for bits in range(_FIRST_BITS, _FIRST_BITS + _BUCKETS - 1))


def read(fd: int) -> Counters | None:
    """Return the counters behind the control page *fd*; None: there are none of this version.

    Raises:
        OSError: *fd* cannot be read.
    """
    memory = os.pread(fd, END, 0)  # a map would allocate all pages that no thread has touched
    if not exist(memory):
        return None
    rows = (memory[at : at + _ROW.size] for at in range(AT, _GAUGES_AT, _ROW.size))
    used = [_ROW.unpack(row) for row in rows if not _is_empty(row)]  # most are of no thread
    sums = [*map(sum, zip(*used, strict=True))] or [0] * (_ROW.size // 8)
    return Counters(
        dict(_operations(sums[_CELL:-_ERRORS])),
        dict(_errors(sums[-_ERRORS:])),
        *sums[:_SUMS],
        *_GAUGES.unpack_from(memory, _GAUGES_AT),
    )


def exist(memory: bytes | mmap.mmap) -> bool:
    """Return whether there are counters of this version in *memory*, behind the control page."""
    return len(memory) == END and memory[VERSION_AT] == VERSION


def copy(before: mmap.mmap, after: mmap.mmap) -> None:
    """Copy the counters from one memory to another, if both have some of this version."""
    if exist(before) and exist(after):
        for at in range(AT, END, mmap.PAGESIZE):
            if not _is_empty(part := before[at : at + mmap.PAGESIZE]):
                after[at : at + mmap.PAGESIZE] = part


def _is_empty(part: bytes) -> bool:
    return part.count(0) == len(part)


def _operations(sums: Sequence[int]) -> Iterator[tuple[str, Operation]]:
    names = {each.value: each.name for each in Opcode}
    for opcode in range(_OPCODES):
        ns, *buckets = sums[opcode * _CELL : (opcode + 1) * _CELL]
        if any(buckets):
            yield names.get(opcode, str(opcode)), Operation(ns, tuple(buckets))


def _errors(sums: Sequence[int]) -> Iterator[tuple[str, int]]:
    for number, count in enumerate(sums):
        if count:
            yield errno.errorcode.get(number, str(number)), count
