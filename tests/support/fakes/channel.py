"""A channel without a kernel, for tests of `Session` without /dev/fuse."""

import mmap
from collections.abc import Iterable, Sequence
from typing import cast

from passthrough.core.filesystem import PassthroughFs
from passthrough.session.handlers.table import HANDLERS
from passthrough.session.request import Request
from passthrough.session.session import Session
from passthrough.session.wire import OUT_HEADER

START = 64
ROOM = 64 * 1024


class FakeChannel:
    """A channel that brings the requests of a test, and keeps all messages of the session."""

    def __init__(self, requests: Iterable[bytes] = ()) -> None:
        self.requests = list(requests)
        self.messages: list[bytes] = []
        """Answers and notifications, as the kernel would read them."""
        self.notifications: list[tuple[int, bytes]] = []
        """The code and the body of each notification."""
        self.backed: list[int] = []
        """The descriptor of each backing id, counted from 1; -1 if the id has been closed."""

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
        self._write(0, unique, body)

    def fail(self, unique: int, number: int) -> None:
        self._write(-number, unique, b"")

    def notify(self, code: int, parts: Sequence[bytes]) -> None:
        self.notifications.append((code, b"".join(parts)))
        self._write(code, 0, b"".join(parts))

    def open_backing(self, fd: int) -> int:
        self.backed.append(fd)
        return len(self.backed)

    def close_backing(self, number: int) -> None:
        self.backed[number - 1] = -1

    def sample(self) -> None:
        pass

    def idle(self) -> None:
        pass

    def _write(self, error: int, unique: int, body: bytes) -> None:
        self.messages.append(OUT_HEADER.pack(OUT_HEADER.size + len(body), error, unique) + body)


class InnerSession:
    """A `Session` over any *fs*; a ByteSession with access to its parts."""

    def __init__(self, fs: object) -> None:
        self.channel = FakeChannel()
        self.session = Session(cast("PassthroughFs", fs), self.channel, HANDLERS)

    def send(self, request: bytes) -> list[bytes]:
        """Serve *request*; return all messages that the session writes for it."""
        self.channel.requests.append(request)
        buffer = self.channel.open_request()
        before = len(self.channel.messages)
        assert self.channel.receive(buffer)
        self.session.answer(buffer, self.channel)
        return self.channel.messages[before:]

    def close(self) -> None:
        """Leave *fs* to the test."""
