"""The record of a session: all that another program needs to go on with it, beside the memory.

The guard writes the record once INIT is answered. It is a memfd that nothing can change any more,
and the control page has its number. A worker shares the guard's descriptors: if it is compromised,
it can put another memfd in the place. So the record has nothing that decides over rights, and each
value is bounded. Options come from the keeper.

**Version.** The memory of tables, requests, locks and streams has no other version than this one.
It is raised with each change of their layout, and with each change of what a field means: the
journal's `found`, a stage, a bit of a flag. tests/passthrough/worker/test_record.py knows the
layouts of each version.
"""

import fcntl
import os
from collections.abc import Iterator
from typing import Final

import msgspec

from passthrough.session.kernel import Begun

VERSION: Final = 1

_LONGEST: Final = 64 * 1024
_LONGEST_REASON: Final = 500
_SIZE_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_F_SEAL_EXEC: Final = 0x20  # of Linux 6.3
_ALL_SEALS: Final = _SIZE_SEALS | fcntl.F_SEAL_WRITE


class RecordError(ValueError):
    """The record or the memory is not what this program can go on with; the text says why."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A session that has begun."""

    version: int
    begun: Begun
    without_handles: str
    """As of the worker's Report."""


class _Head(msgspec.Struct, frozen=True):
    version: int


def store(begun: Begun, without_handles: str) -> int:
    """Return the descriptor of a record, which the caller owns."""
    record = Record(version=VERSION, begun=begun, without_handles=without_handles)
    fd = os.memfd_create("passfs-session", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, msgspec.json.encode(record))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _ALL_SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def load(fd: int) -> Record:
    """Return the record in *fd*.

    Raises:
        RecordError: it is none, or none of this version.
    """
    if _seals(fd) != _ALL_SEALS:
        raise RecordError("its session has no record")
    text = os.pread(fd, _LONGEST, 0)
    try:
        version = msgspec.json.decode(text, type=_Head).version
        if version != VERSION:
            raise RecordError(f"its memory is of version {version}, not {VERSION}")
        found = msgspec.json.decode(text, type=Record)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RecordError(f"the record of its session cannot be read: {error}") from error
    if not all(_possible(found)):
        raise RecordError("the record of its session has a value that cannot be")
    return found


def _possible(found: Record) -> Iterator[bool]:
    """Yield for the values of a record whether each is possible."""
    begun, offered = found.begun, found.begun.offered
    for reason in (found.without_handles, begun.without_passthrough):
        yield len(reason) <= _LONGEST_REASON and reason.isprintable()
    for number in (offered.major, offered.minor, offered.max_readahead, begun.minor):
        yield 0 <= number < 1 << 32
    for flags in (offered.flags, begun.flags):
        yield 0 <= flags < 1 << 64
    for fd in begun.memory:
        yield 0 <= fd < 1 << 31


def check_memory(fd: int) -> None:
    """Raise RecordError unless *fd* is memory that keeps its size."""
    if _seals(fd) != _SIZE_SEALS:
        raise RecordError("its memory is not that of this version")


def _seals(fd: int) -> int:
    """Return the seals of a memfd but F_SEAL_EXEC, or -1 if *fd* is something else.

    The kernel sets that one by itself if the sysctl vm.memfd_noexec says so.
    """
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & ~_F_SEAL_EXEC
    except OSError:
        return -1
