"""A ring of FUSE over io_uring without a kernel; it has one entry."""

import ctypes
from struct import Struct

from passthrough.session.wire import IN_HEADER

IOVEC = Struct("=QQ")
OPERATION_AT, ENTRY_AT = 128, 256
ENTRY = Struct("=QQI")


class FakeRing:
    """A ring with one entry: requests are written to its memory, and answers read from it."""

    def __init__(self, results: list[int] | None = None) -> None:
        self.commands: list[tuple[int, int, tuple[int, int, int]]] = []
        self.requests: list[tuple[bytes, bytes, bytes]] = []
        """The requests to deliver: header, structure of the operation, rest."""
        self.answers: list[tuple[int, bytes, int, bytes]] = []
        """The answers received: second word of the command, header, size of the rest, rest."""
        self.results = [] if results is None else results
        """The results of commands after the last request."""
        self._parts: list[tuple[int, int]] = []

    def prepare(
        self,
        fd: int,
        operation: int,
        words: tuple[int, int, int] = (0, 0, 0),
        buffers: tuple[int, int] = (0, 0),
    ) -> None:
        address, count = buffers
        if count:
            raw = ctypes.string_at(address, count * IOVEC.size)
            self._parts = [IOVEC.unpack_from(raw, at * IOVEC.size) for at in range(count)]
        self.commands.append((fd, operation, words))

    def repeat(self, second_word: int) -> None:
        (header, _), (payload, _) = self._parts
        _, _, size = ENTRY.unpack(ctypes.string_at(header + ENTRY_AT, ENTRY.size))
        answer = ctypes.string_at(header, 16)
        self.answers.append((second_word, answer, size, ctypes.string_at(payload, size)))

    def submit(self) -> None:
        """Take the command."""

    def has_result(self) -> bool:
        return not self.requests and bool(self.results)

    def submit_and_wait(self) -> int:
        return self.wait()

    def wait(self) -> int:
        if not self.requests:
            return self.results.pop(0)
        head, fixed, rest = self.requests.pop(0)
        (header, _), (payload, room) = self._parts
        assert len(rest) <= room
        ctypes.memmove(header, head, len(head))
        ctypes.memmove(header + OPERATION_AT, fixed, len(fixed))
        ctypes.memmove(payload, rest, len(rest))
        ctypes.memmove(header + ENTRY_AT, ENTRY.pack(0, 0, len(rest)), ENTRY.size)
        return 0


def apart(message: bytes, fixed: int) -> tuple[bytes, bytes, bytes]:
    """Split a request of /dev/fuse into header, structure of *fixed* bytes, and rest."""
    at = IN_HEADER.size
    return message[:at], message[at : at + fixed], message[at + fixed :]
