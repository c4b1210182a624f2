"""A fake kernel: sends requests to a session as bytes, and takes the answers apart."""

import errno
import itertools
import os
from collections.abc import Callable
from typing import NamedTuple

from passthrough.core.face import opcodes
from passthrough.identity.idmap import ContainerId, ContainerIds
from passthrough.session.abi import Init, Opcode
from tests.support.tools import abi, wire
from tests.support.tools.implementations import ByteSession

CALLER = ContainerIds(ContainerId(41_001), ContainerId(41_002))
"""The caller of each request."""
EVERYTHING = sum(Init)
READAHEAD = 131_072
# The answers to these requests begin with an entry, which counts as one lookup.
_WITH_ENTRY = {
    *(Opcode.LOOKUP, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK, Opcode.CREATE),
    Opcode.TMPFILE,
}
_WORD_BITS, _WORD_MASK = 32, 0xFFFF_FFFF


class Reply(NamedTuple):
    """An answer: error is 0 or an errno."""

    unique: int
    error: int
    body: bytes


class Kernel:
    """The kernel's side of one connection, from INIT on; *offered* are the flags of INIT.

    The kernel counts the lookups that answers grant, as Linux does.
    """

    def __init__(
        self, session: ByteSession, offered: int = EVERYTHING, minor: int = abi.MINOR
    ) -> None:
        self._session = session
        self._uniques = itertools.count(2, 2)
        self.notifications: list[tuple[int, bytes]] = []
        """The code and the body of each notification."""
        self.granted: list[int] = []
        """The nodeid of each lookup that has not been forgotten by `forget_all`."""
        flags = (offered & _WORD_MASK, offered >> _WORD_BITS)
        self.init = self.ask(Opcode.INIT, wire.INIT_IN.pack(abi.MAJOR, minor, READAHEAD, *flags))
        """The answer to INIT."""

    def send(self, request: bytes) -> list[Reply]:
        """Send *request* as it is; return the answers to it."""
        replies = []
        for message in self._session.send(request):
            length, error, unique = wire.OUT_HEADER.unpack_from(message)
            assert length == len(message)
            body = message[wire.OUT_HEADER.size :]
            if unique:
                replies.append(Reply(unique, -error, body))
            else:
                self.notifications.append((error, body))
        return replies

    def ask(self, opcode: int, body: bytes = b"", nodeid: int = abi.ROOT_ID) -> Reply:
        """Send a request; return its one answer."""
        unique = next(self._uniques)
        (reply,) = self.send(message(opcode, body, nodeid, unique))
        assert reply.unique == unique
        if opcode in _WITH_ENTRY and not reply.error:
            found = entry(reply.body)["nodeid"]
            self.granted += [found] * (found > abi.ROOT_ID)  # the root is never forgotten
        elif opcode == Opcode.READDIRPLUS and not reply.error:
            rows = listed(reply.body, plus=True).values()
            self.granted += [nodeid for nodeid, *_ in rows if nodeid]
        return reply

    def tell(self, opcode: int, body: bytes = b"", nodeid: int = abi.ROOT_ID) -> None:
        """Send a request that has no answer."""
        assert self.send(message(opcode, body, nodeid, next(self._uniques))) == []

    def lookup(self, *names: bytes) -> int:
        """Look *names* up, one below the other; return the nodeid of the last."""
        nodeid = abi.ROOT_ID
        for name in names:
            reply = self.ask(Opcode.LOOKUP, text(name), nodeid)
            assert reply.error == 0, os.strerror(reply.error)
            nodeid = entry(reply.body)["nodeid"]
        return nodeid

    def open(self, nodeid: int, flags: int = os.O_RDWR) -> int:
        """Open a file; return its fh."""
        reply = self.ask(Opcode.OPEN, wire.OPEN_IN.pack(flags, 0), nodeid)
        assert reply.error == 0, os.strerror(reply.error)
        return int(wire.OPEN_OUT.unpack(reply.body)[0])

    def release(self, handle: int) -> None:
        """Close the file with the fh *handle*."""
        assert self.ask(Opcode.RELEASE, wire.RELEASE_IN.pack(handle, 0, 0, 0)).error == 0

    def knows(self, nodeid: int) -> bool:
        """Return whether the session knows *nodeid*: GETATTR does not fail with ESTALE."""
        return self.ask(Opcode.GETATTR, wire.GETATTR_IN.pack(0, 0), nodeid).error != errno.ESTALE

    def forget_all(self) -> None:
        """Forget all lookups that were granted, after which the session knows no inode of them."""
        for nodeid in self.granted:
            self.tell(Opcode.FORGET, wire.FORGET_IN.pack(1), nodeid)
        known = [nodeid for nodeid in {*self.granted} if self.knows(nodeid)]
        self.granted.clear()
        assert known == []


Connect = Callable[..., Kernel]
"""Starts a session with options, flags to offer in INIT and a minor version, all optional."""


def message(
    opcode: int, body: bytes = b"", nodeid: int = abi.ROOT_ID, unique: int = 2, extensions: int = 0
) -> bytes:
    """Return a request in the layout of /dev/fuse, from CALLER."""
    length = wire.IN_HEADER.size + len(body)
    head = (length, opcode, unique, nodeid, CALLER.uid, CALLER.gid, 1, extensions)
    return wire.IN_HEADER.pack(*head) + body


def entry(body: bytes) -> dict[str, int]:
    """Return the fields of ENTRY_OUT at the start of *body*, by their names in linux/fuse.h."""
    return dict(zip(ENTRY_FIELDS, wire.ENTRY_OUT.unpack_from(body), strict=True))


def attributes(body: bytes) -> dict[str, int]:
    """Return the fields of ATTR_OUT, by name."""
    fields = ("attr_valid", "attr_valid_nsec", *ATTR_FIELDS)
    return dict(zip(fields, wire.ATTR_OUT.unpack(body), strict=True))


ATTR_FIELDS = (
    *("ino", "size", "blocks", "atime", "mtime", "ctime", "atimensec", "mtimensec", "ctimensec"),
    *("mode", "nlink", "uid", "gid", "rdev", "blksize", "flags"),
)
ENTRY_FIELDS = (
    *("nodeid", "generation", "entry_valid", "attr_valid", "entry_valid_nsec", "attr_valid_nsec"),
    *ATTR_FIELDS,
)


def listed(body: bytes, *, plus: bool = False) -> dict[bytes, tuple[int, int, int, int]]:
    """Return the names of a listing, each with its nodeid (0 without a lookup), ino, off, type."""
    found = {}
    position = 0
    while position < len(body):
        nodeid = entry(body[position:])["nodeid"] if plus else 0
        position += wire.ENTRY_OUT.size if plus else 0
        ino, off, length, kind = wire.DIRENT.unpack_from(body, position)
        position += wire.DIRENT.size
        found[body[position : position + length]] = (nodeid, ino, off, kind)
        position += -(-length // 8) * 8
    assert position == len(body)
    return found


def text(*names: bytes) -> bytes:
    """Return *names* as the end of a request."""
    return b"".join(name + b"\0" for name in names)


def opcode_names() -> list[str]:
    """Return the name of every opcode that has a handler."""
    return [Opcode(number).name for number in opcodes()]
