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
from functools import reduce
from operator import add
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
_BUCKETS: Final = 31
_FIRST_BITS: Final = 8
# Of a thread: sums in the room of a cell, cells, errors.
_SUMS: Final = Struct("<4Q")
_CELL: Final = Struct(f"<{1 + _BUCKETS}Q")  # the sum of nanoseconds, and the buckets
_ERRORS: Final = Struct("<288Q")
_CELLS_AT: Final = _CELL.size
_ERRORS_AT: Final = _CELLS_AT + _OPCODES * _CELL.size
_ROW: Final = _ERRORS_AT + _ERRORS.size
_GAUGES: Final = Struct("<4Q")
_GAUGES_AT: Final = AT + _ROWS * _ROW
END: Final = _GAUGES_AT + _GAUGES.size
_NAMES: Final = {each.value: each.name for each in Opcode}


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
    rows = [memory[at : at + _ROW] for at in range(AT, _GAUGES_AT, _ROW)]
    used = [row for row in rows if not _is_empty(row)]  # most are of no thread
    return Counters(
        dict(_operations(used)),
        dict(_errors(used)),
        *(_summed(used, _SUMS, 0) or (0, 0, 0, 0)),
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
    return part == bytes(len(part))


def _operations(rows: Sequence[bytes]) -> Iterator[tuple[str, Operation]]:
    for opcode in range(_OPCODES):
        ns, *buckets = _summed(rows, _CELL, _CELLS_AT + opcode * _CELL.size) or [0]
        if any(buckets):
            yield _NAMES.get(opcode, str(opcode)), Operation(ns, tuple(buckets))


def _errors(rows: Sequence[bytes]) -> Iterator[tuple[str, int]]:
    for number, count in enumerate(_summed(rows, _ERRORS, _ERRORS_AT)):
        if count:
            yield errno.errorcode.get(number, str(number)), count


def _summed(rows: Sequence[bytes], numbers: Struct, at: int) -> Sequence[int]:
    """Return the sums of the *numbers* at the byte *at* of each row; nothing if all are zero."""
    parts = [row[at : at + numbers.size] for row in rows]
    used = [numbers.unpack(part) for part in parts if not _is_empty(part)]
    return reduce(_added, used) if used else ()


def _added(first: Sequence[int], second: Sequence[int]) -> Sequence[int]:
    return [*map(add, first, second)]
