"""Reserved disk space, which the plugin frees piece by piece when the file system is full.

A full disk must not keep volumes from being mounted, unmounted or removed. Each such request takes
some KiB, for a journal, a database page or a mount point. A piece is a file, so it holds bytes and
an inode. If a call fails for want of space, the reserve frees one piece and makes the call again. A
later call makes the piece anew as soon as there is space. The pieces hold no data, so a crash costs
nothing.

On a file system without fallocate(2) there is no reserve. The reserve may not suffice on a file
system that copies on write, or beside a program that takes each freed block at once.

Create does not use the reserve: on a full disk it is refused, and leaves nothing.
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
# A transaction of the registry takes up to 100 KiB: a dozen pages, and their copies in the journal.
PIECES: Final = 8
PIECE_BYTES: Final = 128 << 10
# A mount point takes an inode and a block, so this many volumes can be mounted on a full disk.
HIDDEN_PIECES: Final = 16
HIDDEN_PIECE_BYTES: Final = 16 << 10


def is_full(directory: Path) -> bool:
    """Return whether *directory* has no space for a file of one piece; makes and removes one."""
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
    """Pieces of reserved space on one file system; every method blocks."""

    def __init__(self, count: int) -> None:
        self._missing = set(range(count))
        self._held = set[int]()
        self._lock = threading.Lock()

    def refill(self) -> None:
        """Make the missing pieces, as far as there is space."""
        with self._lock:
            if self._missing:
                found = self._missing & self._found()
                self._missing -= found
                self._held |= found
            for number in sorted(self._missing):
                try:
                    self._make(number)
                except OSError as error:
                    log.debug("cannot reserve disk space: %s", error)
                    return
                self._missing.remove(number)
                self._held.add(number)

    def free_piece(self) -> bool:
        """Free one piece; return whether there was one."""
        with self._lock:
            if not self._held:
                return False
            number = self._held.pop()
            self._missing.add(number)
            self._drop(number)
            return True

    def run(self, call: Callable[[], T]) -> T:
        """Return the result of *call*; if it fails for want of space, free a piece and retry.

        Raises:
            OSError: *call* has failed for another reason, or no piece is left.
        """
        self.refill()
        try:
            while True:
                try:
                    return call()
                except OSError as error:
                    if error.errno not in FULL or not self.free_piece():
                        raise
        finally:
            self.refill()

    def _found(self) -> set[int]:
        """Return the numbers of pieces that exist already."""
        return set()

    @abstractmethod
    def _make(self, number: int) -> None:
        """Make one piece; if that fails, leave nothing of it. Raises OSError."""

    @abstractmethod
    def _drop(self, number: int) -> None:
        """Free one piece."""


class LastingReserve(Reserve):
    """Pieces with names below a data directory, which stay when the plugin ends."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(PIECES)
        self._directory = data_dir / NAME

    def _found(self) -> set[int]:
        """Return the pieces of the right size, made by this plugin or an earlier one."""
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
    """Pieces without names, for the mount directory; a context manager.

    Each name in the mount directory is that of a mount point.
    The kernel frees the pieces when the plugin ends. Another program may take the space before the
    next plugin starts.
    """

    def __init__(self, directory: Path, fallback: Reserve | None = None) -> None:
        """Reserve space in *directory*; if no piece is left, free one of *fallback*.

        The fallback helps if it is on the same file system.
        """
        super().__init__(HIDDEN_PIECES)
        self._directory = directory
        self._fallback = fallback
        self._fds: dict[int, int] = {}

    def __enter__(self) -> Self:
        self.refill()
        return self

    def __exit__(self, *_: object) -> None:
        while super().free_piece():
            pass

    def free_piece(self) -> bool:
        """Free one piece, of the fallback if no other is left; return whether there was one."""
        return super().free_piece() or (self._fallback is not None and self._fallback.free_piece())

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
