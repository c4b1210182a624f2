"""What concerns the connection and what the kernel remembers: INIT, FORGET, INTERRUPT, the end."""

import mmap
from collections.abc import Mapping
from typing import Final

from passthrough.session import abi, negotiation, wire
from passthrough.session.abi import Init, Opcode
from passthrough.session.backing import stack_depth
from passthrough.session.channel import MAX_WRITE
from passthrough.session.negotiation import ProtocolError
from passthrough.session.request import Request
from passthrough.session.session import Handler, Session

# How many requests that nobody waits for (readahead, writeback, asynchronous direct I/O) the kernel
# may have under way, and from where on it slows down those who cause them. Its own 12 are too few
# for requests that wait for a disk.
_MAX_BACKGROUND: Final = 64
_CONGESTED: Final = 48
_TIME_GRAIN_NS: Final = 1
_WORD_BITS: Final = 0xFFFF_FFFF


def init(session: Session, request: Request) -> bytes:
    """Agree on features, or end the session: without an agreement there is nothing to serve."""
    try:
        agreed = negotiation.agree(
            negotiation.offer(request.fields(wire.INIT_IN)), session.fs.config
        )
    except ProtocolError as error:
        session.broken = error
        raise
    session.agreed = agreed
    session.passes_through = bool(agreed.flags & Init.PASSTHROUGH)
    depth = stack_depth(session.fs.source_type) if session.passes_through else 0
    return wire.INIT_OUT.pack(
        *(abi.MAJOR, agreed.minor, agreed.max_readahead, agreed.flags & _WORD_BITS),
        *(_MAX_BACKGROUND, _CONGESTED, MAX_WRITE, _TIME_GRAIN_NS),
        *(MAX_WRITE // mmap.PAGESIZE, 0, agreed.flags >> 32, depth, 0),
    )


def forget(session: Session, request: Request) -> None:
    """Give lookups of one inode back."""
    (count,) = request.fields(wire.FORGET_IN)
    session.fs.forget(request.nodeid, count)
    request.done()


def batch_forget(session: Session, request: Request) -> None:
    """Give lookups of many inodes back."""
    (count,) = request.fields(wire.BATCH_FORGET_IN)
    for number, lookups in request.rows(wire.FORGET_ONE, count):
        session.fs.forget(number, lookups)
    request.done()


def interrupt(session: Session, request: Request) -> None:
    """The caller of another request does not want to wait: for a lock, that is; none else can last.

    The kernel waits for the answer to that other request, whatever becomes of this one.
    """
    (unique,) = request.fields(wire.INTERRUPT_IN)
    session.fs.interrupt(unique & ~abi.UNIQUE_RESEND)


def destroy(_session: Session, _request: Request) -> bytes:
    """The last request of a connection."""
    return b""


def notify_reply(_session: Session, _request: Request) -> None:
    """The answer to a RETRIEVE, which only had to wake somebody."""


HANDLERS: Final[Mapping[int, Handler]] = {
    Opcode.INIT: init,
    Opcode.FORGET: forget,
    Opcode.BATCH_FORGET: batch_forget,
    Opcode.INTERRUPT: interrupt,
    Opcode.DESTROY: destroy,
    Opcode.NOTIFY_REPLY: notify_reply,
}
