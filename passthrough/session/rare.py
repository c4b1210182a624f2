"""The calls of the compiled core to Python: INIT, mounts below the source, lines of the log."""

import logging
import mmap
import os
from collections.abc import Callable
from typing import Final, Protocol

from passthrough.linux import filehandles, mountinfo
from passthrough.options.effective import Effective
from passthrough.session import abi, negotiation, wire
from passthrough.session.abi import Init, Opcode
from passthrough.session.backing import explain, stack_depth
from passthrough.session.negotiation import Agreed, Offer, ProtocolError

log = logging.getLogger(__name__)

MAX_WRITE: Final = 1 << 20
"""The bytes of data that a request or reply may have; the core's buffers have room for them."""

# The requests without a caller (readahead, writeback, asynchronous direct I/O) that the kernel may
# have in flight, and the number at which it slows their callers down. The kernel's own 12 are too
# few for requests that wait for a disk.
_MAX_BACKGROUND: Final = 64
_CONGESTED: Final = 48
_TIME_GRAIN_NS: Final = 1
_WORD_BITS: Final = 0xFFFF_FFFF


class Negotiating(Protocol):
    """The part of the core that INIT decides."""

    @property
    def source_type(self) -> int:
        """The type of the source's file system, linux/magic.h."""

    def agree(self, flags: int, minor: int, passthrough: bool) -> None:
        """Note what INIT has agreed on."""


class Rare:
    """The calls of one core; core/rare.pyx makes them, in any thread."""

    def __init__(self, config: Effective) -> None:
        self._config = config
        self.core: Negotiating | None = None
        """The core that makes the calls; to be set before it serves."""
        self.offered: Offer | None = None
        """The kernel's INIT request; None before."""
        self.agreed: Agreed | None = None
        """The result of INIT; None before."""
        self.broken: ProtocolError | None = None
        """Why INIT could not be answered."""

    def serve(self, opcode: int, body: bytes) -> bytes:
        """Serve a request that the core does not serve itself: INIT.

        Raises:
            ProtocolError: the session does not support the kernel's version of FUSE.
        """
        if opcode != Opcode.INIT or self.core is None:
            raise ValueError(f"opcode {opcode} is not served here")
        self.offered = negotiation.offer(wire.INIT_IN.unpack_from(body))
        try:
            agreed = negotiation.agree(self.offered, self._config)
        except ProtocolError as error:
            self.broken = error
            raise
        self.agreed = agreed
        passes_through = bool(agreed.flags & Init.PASSTHROUGH)
        self.core.agree(int(agreed.flags), agreed.minor, passes_through)
        depth = stack_depth(self.core.source_type) if passes_through else 0
        return wire.INIT_OUT.pack(
            *(abi.MAJOR, agreed.minor, agreed.max_readahead, agreed.flags & _WORD_BITS),
            *(_MAX_BACKGROUND, _CONGESTED, MAX_WRITE, _TIME_GRAIN_NS),
            *(MAX_WRITE // mmap.PAGESIZE, 0, agreed.flags >> 32, depth, 0),
        )

    def uses(self, feature: Init) -> bool:
        """Return whether INIT has agreed on *feature*."""
        return self.agreed is not None and bool(self.agreed.flags & feature)

    def why_not(self, feature: Init) -> str:
        """Return why *feature* is not in use; empty if it is, or if nothing asks for it."""
        found = () if self.agreed is None else self.agreed.features
        name = str(feature.name).lower()
        return next((f.reason for f in found if f.feature == name and f.wanted and not f.used), "")

    def open_across(self, directory_fd: int, name: bytes) -> int:
        """Open what is mounted on *name*, unless it is passfs; the caller owns the descriptor.

        Raises:
            OSError: ELOOP, it is passfs; ESTALE, it is being unmounted; as open(2) reports it.
        """
        return mountinfo.open_mounted(directory_fd, name)

    def report(self, kind: int, number: int, name: bytes) -> None:
        """Log a line of *kind*, one of core/state.pxd."""
        _REPORTS[kind](number, name)

    def mistake(self, what: str, error: Exception) -> None:
        """Log *error*, which no caller can have caused, with a traceback."""
        log.error("%s failed by a mistake of this program", what, exc_info=error)

    def last_words(self, why: bytes) -> None:
        """Log why the process ends at once."""
        log.critical("the process ends, because a thread %s", os.fsdecode(why))


def _unmapped(option: str) -> Callable[[int, bytes], None]:
    def told(number: int, _name: bytes) -> None:
        log.warning(
            "id %d is in no range of %s, so nothing is created for it; logged once for each option",
            *(number, option),
        )

    return told


def _left_out(number: int, name: bytes) -> None:
    log.warning(
        "%r is left out of a listing: %s; this is said once for each cause",
        *(name, os.strerror(number)),
    )


def _no_handles(number: int, _name: bytes) -> None:
    reason = filehandles.reason(OSError(number, os.strerror(number)))
    log.warning("some files are held by descriptors: %s", reason)


def _backing(number: int, _name: bytes) -> None:
    log.warning("some files are read and written by the worker: %s", explain(number))


def _no_identity(_number: int, _name: bytes) -> None:
    log.error("the kernel does not let this process act as a caller")


def _untaken_answer(number: int, _name: bytes) -> None:
    log.error("the kernel does not take an answer: %s", os.strerror(number))


def _no_thread(number: int, _name: bytes) -> None:
    log.warning("cannot start more than %d threads", number)


def _no_header(number: int, _name: bytes) -> None:
    log.warning("a request of %d bytes has no header", number)


def _malformed(number: int, _name: bytes) -> None:
    log.warning("%s: the bytes of opcode %d make no request", Opcode(number).name.lower(), number)


def _lock_hangs(_number: int, _name: bytes) -> None:
    log.warning("a caller that waits for a lock cannot be interrupted before the host answers")


def _refused(number: int, name: bytes) -> None:
    log.error(
        "%s of inode %s gets EIO, because it has ended two workers",
        *(Opcode(number).name.lower(), os.fsdecode(name)),
    )


def _damage(_number: int, name: bytes) -> None:
    log.error(
        "the memory that the last worker has left is damaged, and is not used: %s is wrong",
        os.fsdecode(name),
    )


# By Report of core/state.pxd.
_REPORTS: Final = (
    _unmapped("map_uid"),
    _unmapped("map_gid"),
    _left_out,
    _no_handles,
    _backing,
    _no_identity,
    _untaken_answer,
    _no_thread,
    _no_header,
    _malformed,
    _lock_hangs,
    _refused,
    _damage,
)
