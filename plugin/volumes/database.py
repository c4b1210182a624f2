"""The SQLite file of the registry: its lock, connection and transactions, and a copy of it."""

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from plugin import reserve
from plugin.errors import CannotStart

# sqlite.org/rescode.html: IOERR, FULL, CANTOPEN. A full disk or quota may give any of them: it
# depends on the file, journal or database, and on whether bytes or inodes are lacking.
_NO_SPACE: Final = (10, 13, 14)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive flock(2) on *path*; the kernel releases it if this process dies.

    Raises:
        CannotStart: another process holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotStart(
                f"another passfs uses the data directory {path.parent}; stop it first, or set"
                " PASSFS_DATA_DIR to another directory"
            ) from error
        yield
    finally:
        os.close(fd)


def connect(path: Path) -> sqlite3.Connection:
    """Open the database at *path*; create it if it is missing."""
    # isolation_level None: Python's module begins no transaction by itself.
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def copy_without_volumes(path: Path, target: Path) -> None:
    """Copy the registry at *path*, which a plugin may be changing, to *target*, without volumes.

    An engine asks all drivers for a volume that it does not know, so two drivers must not have it.

    Raises:
        CannotStart: *path* is damaged or no database, or *target* cannot be written.
    """
    try:
        with (
            closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(target)) as made,
        ):
            source.backup(made)
            made.execute("PRAGMA foreign_keys = ON")
            with made:
                made.execute("DELETE FROM volumes")
    except sqlite3.Error as error:
        raise CannotStart(
            f"cannot read the registry {path}: {error}; restore it from a backup"
        ) from error


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Execute statements on the database at *path* in one transaction; roll back on an exception.

    Raises:
        OSError: the file system is full.
        sqlite3.Error: the database cannot be written.
    """
    try:
        with connection:  # commits, or rolls back
            connection.execute("BEGIN IMMEDIATE")
            yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in _NO_SPACE and reserve.is_full(path.parent):
            reason = f"no room is left on its file system ({error})"
            raise OSError(errno.ENOSPC, reason) from error
        raise
