"""A kernel that is none: it asks a session in bytes, and takes its bytes apart again."""

import itertools
import mmap
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

from passthrough.core.filesystem import PassthroughFs
from passthrough.options.choices import SessionKind
from passthrough.options.effective import Effective
from passthrough.session import abi, negotiation, wire
from passthrough.session.abi import Init, Opcode
from passthrough.session.handlers.table import HANDLERS
from passthrough.session.request import Request
from passthrough.session.session import Session
from tests.support.tools.direct import CALLER
from tests.support.tools.options import effective

START = 64
ROOM = 64 * 1024
EVERYTHING = sum(Init)


class Reply(NamedTuple):
    """What a session has answered: an errno of nought, or a body of nothing."""

    unique: int
    error: int
    body: bytes


class FakeChannel:
    """Gives what a test has put there, and keeps what comes back."""

    def __init__(self, requests: Iterable[bytes] = ()) -> None:
        self.requests = list(requests)
        self.replies: list[Reply] = []
        self.backed: list[int] = []
        """What the id of each place, counted from 1, stands for; -1 once it is given up."""
        self.notifications: list[tuple[int, bytes]] = []

    def open_request(self) -> Request:
        return Request(mmap.mmap(-1, ROOM), START)

    def receive(self, request: Request) -> bool:
        if not self.requests:
            return False
        raw = self.requests.pop(0)
        request.into[0][: len(raw)] = raw
        request.length = len(raw)
        return True

    def reply(self, unique: int, body: bytes) -> None:
        self.replies.append(Reply(unique, 0, bytes(body)))

    def fail(self, unique: int, number: int) -> None:
        self.replies.append(Reply(unique, number, b""))

    def open_backing(self, fd: int) -> int:
        self.backed.append(fd)
        return len(self.backed)

    def close_backing(self, number: int) -> None:
        self.backed[number - 1] = -1

    def sample(self) -> None:
        pass

    def idle(self) -> None:
        pass

    def notify(self, code: int, parts: Sequence[bytes]) -> None:
        self.notifications.append((code, b"".join(parts)))


class Kernel:
    """Speaks to a session over *fs* as the kernel would, once features are agreed on."""

    def __init__(
        self, fs: object, config: Effective | None = None, offered: int = EVERYTHING
    ) -> None:
        self.channel = FakeChannel()
        offer = negotiation.Offer(abi.MAJOR, abi.MINOR, 0, offered)
        agreed = negotiation.agree(offer, config or effective(session=SessionKind.KERNEL))
        self.session = Session(cast("PassthroughFs", fs), self.channel, HANDLERS, agreed)
        self._uniques = itertools.count(2, 2)

    def send(self, raw: bytes) -> list[Reply]:
        """Send bytes as they are; gives what they are answered with."""
        self.channel.requests.append(raw)
        request = self.channel.open_request()
        before = len(self.channel.replies)
        assert self.channel.receive(request)
        self.session.answer(request, self.channel)
        return self.channel.replies[before:]

    def ask(self, opcode: int, body: bytes = b"", nodeid: int = abi.ROOT_ID) -> Reply:
        """Send a request; gives its one answer."""
        unique = next(self._uniques)
        (reply,) = self.send(message(opcode, body, nodeid, unique))
        assert reply.unique == unique
        return reply

    def tell(self, opcode: int, body: bytes = b"", nodeid: int = abi.ROOT_ID) -> None:
        """Send what has no answer."""
        assert self.send(message(opcode, body, nodeid, next(self._uniques))) == []


def message(
    opcode: int, body: bytes = b"", nodeid: int = abi.ROOT_ID, unique: int = 2, extensions: int = 0
) -> bytes:
    """A request as it comes from /dev/fuse, from CALLER."""
    length = wire.IN_HEADER.size + len(body)
    head = (length, opcode, unique, nodeid, CALLER.uid, CALLER.gid, 1, extensions)
    return wire.IN_HEADER.pack(*head) + body


def entry(body: bytes) -> dict[str, int]:
    """The fields of ENTRY_OUT at the start of *body*, by their names in linux/fuse.h."""
    return dict(zip(ENTRY_FIELDS, wire.ENTRY_OUT.unpack_from(body), strict=True))


def attributes(body: bytes) -> dict[str, int]:
    """The fields of ATTR_OUT, by name."""
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
    """The names of a listing: what is looked up (nodeid, or nought), ino, off and type."""
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
    """Names as requests end with them."""
    return b"".join(name + b"\0" for name in names)


def words(layout: str, *values: int) -> bytes:
    """Values in C's layout, unpadded."""
    return struct.pack("=" + layout, *values)


def opcode_names() -> list[str]:
    """Every opcode that is answered, by name."""
    return [Opcode(number).name for number in HANDLERS]
