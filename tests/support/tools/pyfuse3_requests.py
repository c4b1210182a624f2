"""Sends requests to the pyfuse3 adapter as pyfuse3 does, without a kernel."""

from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from passthrough.core.face import Core
from passthrough.session.abi import Opcode
from passthrough.session.libfuse import LibfuseOperations
from tests.support.tools import wire

# It stands in for pyfuse3.RequestContext: only pyfuse3 can set the fields of that.
CONTEXT = SimpleNamespace(uid=41_001, gid=41_002, pid=7, umask=0o022)
OPEN_FLAGS = 0o2001
"""The flags of each open file of a Recording."""
FH = 1 << 40 | 17

ENTRY = wire.ENTRY_OUT.pack(3 << 32 | 5, 0, 1, 2, 0, 0, *range(16))
ATTRIBUTES = wire.ATTR_OUT.pack(7, 0, *range(16))
OPENED = wire.OPEN_OUT.pack(FH, 0, 0)
REPLIES: dict[int, bytes] = {
    **dict.fromkeys(
        (Opcode.LOOKUP, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK), ENTRY
    ),
    **dict.fromkeys((Opcode.GETATTR, Opcode.SETATTR), ATTRIBUTES),
    **dict.fromkeys((Opcode.OPEN, Opcode.OPENDIR), OPENED),
    Opcode.CREATE: ENTRY + OPENED,
    Opcode.WRITE: wire.WRITE_OUT.pack(9),
    Opcode.STATFS: wire.STATFS_OUT.pack(*range(8)),
}


class Sent(NamedTuple):
    """A request as the core gets it."""

    opcode: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    body: bytes


class Recording:
    """A core that records its requests; it answers each with *reply*, or one that is well-formed.

    A number is an errno, and an exception is raised.
    """

    def __init__(self, reply: bytes | int | BaseException | None = None) -> None:
        self.reply = reply
        self.sent: list[Sent] = []
        self.trimmed = 0

    def ask(self, *words: Any) -> bytes | int:
        opcode, nodeid, uid, gid, pid, *parts = words
        self.sent.append(Sent(opcode, nodeid, uid, gid, pid, b"".join(parts)))
        if isinstance(self.reply, BaseException):
            raise self.reply
        return REPLIES.get(self.sent[-1].opcode, b"") if self.reply is None else self.reply

    def flags_of(self, _fh: int) -> int:
        return OPEN_FLAGS

    def trim(self) -> None:
        self.trimmed += 1

    def agree(self, *_: object) -> None:
        """Take what INIT has agreed on."""

    def use_device(self, fd: int) -> None:
        """Take a device."""


def operations(core: object) -> LibfuseOperations:
    return LibfuseOperations(cast("Core", core), lambda: None)


def request(core: object, name: str, *args: object) -> Any:
    """Have the handler *name* serve a request; return what pyfuse3 gets."""
    return finished(getattr(operations(core), name)(*args))


def finished(handler: Coroutine[Any, Any, Any]) -> Any:
    """Run *handler*, which must not wait; return its result."""
    try:
        handler.send(None)
    except StopIteration as done:
        return done.value
    handler.close()
    raise AssertionError("a handler waits")
