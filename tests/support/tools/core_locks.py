"""Users of a volume's locks, for the tests of the compiled locks."""

import errno
import fcntl
import itertools
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Self

import pytest

from tests.passthrough.core.probe_locks import Locking
from tests.support.tools.host_calls import LAST_BYTE

READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
DEADLOCK: Final = errno.errorcode[errno.EDEADLK]  # which has two names
PATIENCE_S: Final = 20.0
GETLK, SETLK, SETLKW = 31, 32, 33
FLOCK = 1
_BLOCKING_CALLS: Final = {"72", "73", "25", "32"}  # fcntl(2) and flock(2), x86_64 and aarch64
_NOTIFY: Final = struct.Struct("=IiQQqq")  # fuse_out_header, fuse_notify_inval_inode_out
_INVAL_INODE: Final = 2
_uniques = itertools.count(1000, 2)


class Found(NamedTuple):
    """A lock as GETLK answers it."""

    kind: int
    start: int
    end: int
    pid: int


class Served(Locking):
    """A volume that serves locks on one file, and tells the kernel through a pipe."""

    def __init__(self, path: Path, *, waits: bool = True, writeback: bool = False) -> None:
        self.path = path
        self.users: list[User] = []
        self._told_fd, self._device_fd = os.pipe2(os.O_NONBLOCK)
        super().__init__(self._device_fd, waits=waits, writeback=writeback)

    def __new__(cls, *_args: object, **_options: object) -> Self:
        return super().__new__(cls)

    def told(self) -> int:
        """Return how often the kernel was told to drop its pages of the file, since the last call.

        The numbers of the inodes are those of the users.
        """
        try:
            messages = os.read(self._told_fd, 1 << 16)
        except BlockingIOError:
            return 0
        count, rest = divmod(len(messages), _NOTIFY.size)
        assert rest == 0
        for length, code, unique, nodeid, offset, size in _NOTIFY.iter_unpack(messages):
            assert (length, code, unique) == (_NOTIFY.size, _INVAL_INODE, 0)
            assert nodeid in {user.nodeid for user in self.users}
            assert (offset, size) == (0, 0)
        return count

    def end(self) -> None:
        """Release the open files and all memory."""
        for user in self.users:
            if user.fd >= 0:
                user.release()
        assert self.descriptions() == 0
        self.free()
        os.close(self._told_fd)
        os.close(self._device_fd)


class User:
    """A process that has the file open: the owner of its locks, on one volume."""

    def __init__(
        self, volume: Served, owner: int, flags: int = os.O_RDWR, *, path: Path | None = None
    ) -> None:
        self.volume, self.owner, self.pid = volume, owner, owner + 1000
        self.fd = os.open(path or volume.path, flags)
        self.nodeid, self.fh = volume.open(os.fstat(self.fd).st_ino, self.fd)
        volume.users.append(self)

    def ask(
        self, opcode: int, lock: tuple[int, int, int], *, flags: int = 0, unique: int = 0
    ) -> int | tuple[int, int, int, int]:
        """Send GETLK, SETLK or SETLKW with a kind, a first and a last byte."""
        return self.volume.ask(
            *(opcode, self.nodeid, self.fh, self.owner, *lock),
            *(self.pid, flags, unique or next(_uniques)),
        )

    def lock(self, kind: int, start: int = 0, end: int = LAST_BYTE) -> None:
        assert name(self.ask(SETLK, (kind, start, end))) == "locked"

    def denied(self, kind: int, start: int = 0, end: int = LAST_BYTE, why: str = "EAGAIN") -> None:
        assert name(self.ask(SETLK, (kind, start, end))) == why

    def seen(self, kind: int = WRITE, start: int = 0, end: int = LAST_BYTE) -> Found | None:
        answer = self.ask(GETLK, (kind, start, end))
        assert isinstance(answer, tuple)
        found = Found(*answer)
        if found.kind == UNLOCK:
            assert found == (UNLOCK, start, end, 0)
            return None
        return found

    def held(self) -> list[tuple[int, int, int]]:
        return self.volume.held(self.nodeid, self.owner)

    def wait(self, kind: int, start: int = 0, end: int = LAST_BYTE, unique: int = 0) -> "Waiting":
        unique = unique or next(_uniques)
        return Waiting(
            self.volume, unique, lambda: self.ask(SETLKW, (kind, start, end), unique=unique)
        )

    def flock(self, kind: int) -> str:
        return name(self.ask(SETLK, (kind, 0, 0), flags=FLOCK))

    def wait_flock(self, kind: int) -> "Waiting":
        unique = next(_uniques)
        return Waiting(
            self.volume, unique, lambda: self.ask(SETLKW, (kind, 0, 0), flags=FLOCK, unique=unique)
        )

    def flush(self) -> None:
        self.volume.closed(self.nodeid, self.owner)

    def release(self, *, unlock: bool = False) -> None:
        self.fd = -1
        self.volume.release(self.fh, unlock=unlock)

    def abandon(self) -> None:
        """Close the host's descriptor, of a volume that has ended."""
        os.close(self.fd)
        self.fd = -1

    def close(self) -> None:
        """Close the only descriptor."""
        self.flush()
        self.release()


class Waiting(threading.Thread):
    """A lock that is waited for, in a thread of its own, which is inside the host's call."""

    def __init__(self, volume: Served, unique: int, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._volume, self.unique, self._call = volume, unique, call
        self.result: str | None = None
        self.start()

    def run(self) -> None:
        self.result = name(self._call())

    def blocked(self) -> None:
        """Wait until the thread sleeps in the host's call, fcntl(2) or flock(2)."""
        while self.is_alive():
            with open(f"/proc/self/task/{self.native_id}/syscall") as file:
                if file.read().split()[0] in _BLOCKING_CALLS:
                    return
        pytest.fail(f"it ended with {self.result} instead of waiting")

    def interrupt(self) -> None:
        self._volume.interrupt(self.unique)

    def ended(self) -> str | None:
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self.result


def name(result: object) -> str:
    """Return the name of a request's errno, or `locked`."""
    assert isinstance(result, int)
    return errno.errorcode[-result] if result else "locked"
