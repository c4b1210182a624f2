"""Requests for extended attributes."""

from collections.abc import Mapping
from typing import Final

from passthrough.session import abi, wire
from passthrough.session.abi import Opcode
from passthrough.session.request import Request
from passthrough.session.session import Handler, Session


def getxattr(session: Session, request: Request) -> bytes:
    """The value of one attribute, or how long it is."""
    (limit,) = request.fields(wire.GETXATTR_IN)
    return wire.sized(session.fs.getxattr(request.nodeid, request.name()), limit)


def setxattr(session: Session, request: Request) -> bytes:
    """Set one attribute."""
    size, flags, more = request.fields(wire.SETXATTR_IN)
    name, value = request.named_value(size)
    clear = bool(more & abi.SETXATTR_ACL_KILL_SGID)
    session.fs.setxattr(request.nodeid, name, value, flags, clear_privileges=clear)
    return b""


def listxattr(session: Session, request: Request) -> bytes:
    """The names of the attributes, or how long they are together."""
    (limit,) = request.fields(wire.GETXATTR_IN)
    names = session.fs.listxattr(request.nodeid, request.caller())
    return wire.sized(b"".join(name + b"\0" for name in names), limit)


def removexattr(session: Session, request: Request) -> bytes:
    """Remove one attribute."""
    session.fs.removexattr(request.nodeid, request.name())
    return b""


HANDLERS: Final[Mapping[int, Handler]] = {
    Opcode.GETXATTR: getxattr,
    Opcode.SETXATTR: setxattr,
    Opcode.LISTXATTR: listxattr,
    Opcode.REMOVEXATTR: removexattr,
}
