"""The counters of a mount as the control socket tells them."""

from collections.abc import Mapping, Sequence

import msgspec

FIRST_BOUND_NS = 256
"""The bound of the first bucket of an Operation."""


class Operation(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The requests of one operation."""

    ns: int
    """Their times in all, in nanoseconds."""
    buckets: Sequence[int]
    """How many took so long: number N, from 0, has those of less than FIRST_BOUND_NS << N that
    are in no bucket before; the last one has all longer ones."""


class Counters(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What a mount has served since it was made, and what its worker holds now.

    passthrough/worker/counters.py says more about each number.
    """

    operations: Mapping[str, Operation]
    """By opcode, such as "LOOKUP"; those that there were."""
    errors: Mapping[str, int]
    """By errno, such as "ENOENT"; those that there were."""
    opens: int = 0
    passing_opens: int = 0
    """Of the opens, those whose data the kernel passes through."""
    bytes_read: int = 0
    bytes_written: int = 0
    """By the worker, without data that the kernel passes through."""
    inodes: int = 0
    open_files: int = 0
    open_directories: int = 0
    passing_files: int = 0
