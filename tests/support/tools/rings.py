"""FUSE over io_uring: switched on for the length of a test, and a ring without a kernel."""

import contextlib
import ctypes
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from struct import Struct

import pytest

from passthrough.session.wire import IN_HEADER

WITHOUT = "PASSFS_TESTS_WITHOUT_IO_URING"
PARAMETER = Path("/sys/module/fuse/parameters/enable_uring")
IOVEC = Struct("=QQ")
OPERATION_AT, ENTRY_AT = 128, 256
ENTRY = Struct("=QQI")


@contextlib.contextmanager
def switched_on() -> Iterator[None]:
    """Switch FUSE over io_uring on while a mount is made, and afterwards back as it was.

    What is mounted keeps it. Another run on this machine that wants the same waits meanwhile.
    """
    if os.environ.get(WITHOUT):
        pytest.skip(f"{WITHOUT} is set")
    try:
        with PARAMETER.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = file.read()
            PARAMETER.write_text("Y\n")
            try:
                yield
            finally:
                PARAMETER.write_text(before)
    except OSError as error:
        if error.filename != str(PARAMETER):
            raise
        pytest.fail(f"no FUSE over io_uring here, which {WITHOUT}=1 accepts: {error}")


def switched_for(options: Mapping[str, str]) -> contextlib.AbstractContextManager[None]:
    """The same for a mount with *options*, if these want it."""
    wanted = options.get("transport") == "io_uring"
    return switched_on() if wanted else contextlib.nullcontext()


def rings(pid: int) -> int:
    """How many rings a worker has: no descriptor leads to one, but its memory is mapped twice."""
    return Path(f"/proc/{pid}/maps").read_text().count("anon_inode:[io_uring]") // 2


class FakeRing:
    """The kernel's side of one entry: a request is put into its memory, an answer taken out."""

    def __init__(self, results: list[int] | None = None) -> None:
        self.commands: list[tuple[int, int, tuple[int, int, int]]] = []
        self.requests: list[tuple[bytes, bytes, bytes]] = []
        """Of each to come: its header, the structure of its operation, the rest."""
        self.answers: list[tuple[int, bytes, int, bytes]] = []
        """Of each that has come: what was committed, the header, the size of the rest, the rest."""
        self.results = [] if results is None else results
        """What commands end with, once there are no more requests."""
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
    """A request as it comes from /dev/fuse, with a structure of *fixed* bytes, taken apart."""
    at = IN_HEADER.size
    return message[:at], message[at : at + fixed], message[at + fixed :]
