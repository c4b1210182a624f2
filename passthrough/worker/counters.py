"""The counters of a volume: its requests by operation, with their times, and errors by errno.

The threads of the worker count in memory behind the control page (control.py). core/counters.pyx
says what they count. The counters outlive the worker, and go on if another program takes over.

The memory has rows, for one thread each. A reader sums them. It takes each number as it is, because
a worker that is compromised can write the memory: a sum may be any number from 0 on.
"""

import errno
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from struct import Struct
from typing import Final, NamedTuple

from passthrough.session.abi import Opcode

VERSION: Final = 1
"""Of the layout."""
VERSION_AT: Final = 85
"""Where the control page has it. There is a zero if an older program has made the page."""
AT: Final = 4096

_ROWS: Final = 16
_OPCODES: Final = 54
_ERRORS: Final = 320
_BUCKETS: Final = 31
_FIRST_BITS: Final = 8
_CELL: Final = 1 + _BUCKETS  # the sum of nanoseconds, and the buckets
_ROW: Final = Struct(f"<{_OPCODES * _CELL + _ERRORS}Q")
END: Final = AT + _ROWS * _ROW.size


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
    """What a volume has served since it was mounted."""

    operations: Mapping[str, Operation]
    """By the name of the opcode, such as "LOOKUP"; those that there were. 0 are unknown ones."""
    errors: Mapping[str, int]
    """By the name of the errno, such as "ENOENT"; those that there were. 0 are unknown ones."""


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
    rows = (memory[at : at + _ROW.size] for at in range(AT, END, _ROW.size))
    used = [_ROW.unpack(row) for row in rows if not _is_empty(row)]  # most are of no thread
    sums = [*map(sum, zip(*used, strict=True))] or [0] * (_ROW.size // 8)
    return Counters(dict(_operations(sums)), dict(_errors(sums[_OPCODES * _CELL :])))


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
