"""Room that is set aside on a file system, and given up piece by piece once there is no other.

A full disk must not keep volumes from being mounted, unmounted or removed, and that takes some KiB:
a journal, a page, a mount point. Each piece is a file, and so holds bytes and an inode. A piece is
given up when a call fails for want of room; then the call is made again. Later calls make the piece
anew as soon as there is room. A reserve holds nothing that is needed, so a crash cannot hurt it.

Where a file system cannot allocate ahead, fallocate(2), there is no reserve.

Create does not use the reserve: it is refused and leaves nothing. On a file system that copies on
write, or beside a program that takes each freed block at once, the reserve may not suffice.
"""

import errno
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

FULL: Final = (errno.ENOSPC, errno.EDQUOT)
NAME: Final = "reserve"
PRIVATE_MODE: Final = 0o600
# A change of the registry takes up to 100 KiB: a dozen pages, and their copies in the journal.
PIECES: Final = 8
PIECE_BYTES: Final = 128 << 10
# A mount point takes an inode and a block. So many volumes can be mounted on a full disk.
HIDDEN_PIECES: Final = 16
HIDDEN_PIECE_BYTES: Final = 16 << 10


def is_full(directory: Path) -> bool:
    """Return whether a file of one piece cannot be made in *directory*, for want of room alone."""
    probe = directory / f"{NAME}.probe"
    try:
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
        try:
            os.posix_fallocate(fd, 0, PIECE_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno in FULL
    finally:
        probe.unlink(missing_ok=True)
    return False


class Reserve(ABC):
    """Pieces of room on one file system; all of it blocks."""

    def __init__(self, count: int) -> None:
        self._missing = set(range(count))
        self._held = set[int]()
        self._turn = threading.Lock()

    def refill(self) -> None:
        """Set aside what is missing, as far as there is room."""
        with self._turn:
            if self._missing:
                found = self._missing & self._found()
                self._missing -= found
                self._held |= found
            for number in sorted(self._missing):
                try:
                    self._make(number)
                except OSError as error:
                    log.debug("no room is set aside: %s", error)
                    return
                self._missing.remove(number)
                self._held.add(number)

    def give_up(self) -> bool:
        """Free one piece; return whether there was one."""
        with self._turn:
            if not self._held:
                return False
            number = self._held.pop()
            self._missing.add(number)
            self._drop(number)
            return True

    def within(self, call: Callable[[], T]) -> T:
        """Return what *call* returns; make room and call again while it fails for want of room.

        Raises:
            OSError: *call* has failed for another reason, or the reserve is used up.
        """
        self.refill()
        try:
            while True:
                try:
                    return call()
                except OSError as error:
                    if error.errno not in FULL or not self.give_up():
                        raise
        finally:
            self.refill()

    def _found(self) -> set[int]:
        """Return the pieces that an earlier plugin has left."""
        return set()

    @abstractmethod
    def _make(self, number: int) -> None:
        """Set one piece aside, or leave nothing of it. Raises OSError."""

    @abstractmethod
    def _drop(self, number: int) -> None:
        """Free one piece."""


class LastingReserve(Reserve):
    """Pieces with names below a data directory, which also wait for the next plugin."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(PIECES)
        self._directory = data_dir / NAME

    def _found(self) -> set[int]:
        """Return the pieces that are there, of this plugin or of an earlier one."""
        with suppress(OSError):
            return {
                int(piece.name)
                for piece in os.scandir(self._directory)
                if piece.name.isdecimal() and piece.stat().st_size == PIECE_BYTES
            }
        return set()

    def _make(self, number: int) -> None:
        if not self._directory.is_dir():
            self._directory.mkdir(mode=0o700)
        path = self._directory / str(number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, PRIVATE_MODE)
        try:
            os.posix_fallocate(fd, 0, PIECE_BYTES)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(fd)

    def _drop(self, number: int) -> None:
        with suppress(FileNotFoundError):
            (self._directory / str(number)).unlink()


class HiddenReserve(Reserve):
    """Pieces without names, where other names would be in the way; a context manager."""

    def __init__(self, directory: Path, beyond: Reserve | None = None) -> None:
        """Set room aside in *directory*; when it is used up, *beyond* may be in the same place.

        The end of the plugin frees these pieces, and another program may be faster than the next
        plugin.
        """
        super().__init__(HIDDEN_PIECES)
        self._directory = directory
        self._beyond = beyond
        self._fds: dict[int, int] = {}

    def __enter__(self) -> Self:
        self.refill()
        return self

    def __exit__(self, *_: object) -> None:
        while super().give_up():
            pass

    def give_up(self) -> bool:
        """Free one piece, of *beyond* if there is no other; return whether there was one."""
        return super().give_up() or (self._beyond is not None and self._beyond.give_up())

    def _make(self, number: int) -> None:
        fd = os.open(self._directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, PRIVATE_MODE)
        try:
            os.posix_fallocate(fd, 0, HIDDEN_PIECE_BYTES)
        except OSError:
            os.close(fd)
            raise
        self._fds[number] = fd

    def _drop(self, number: int) -> None:
        os.close(self._fds.pop(number))
