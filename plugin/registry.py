"""The volumes on disk: one SQLite database in the data directory, written before any answer.

A registry that cannot be read stops the plugin and is left as it is. It is never taken for an empty
one: dockerd forgets a volume, with its options, when Get says that it does not exist.

All of it blocks. One connection serves every thread, one statement at a time; each change is a
single statement and so is whole or absent after a crash.
"""

import fcntl
import os
import sqlite3
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Self

import msgspec

from plugin.errors import CannotStart, RegistryFailed
from plugin.volume import NAME, Record, VolumeName

FILE_NAME = "passfs.db"
LOCK_NAME = "passfs.lock"

APPLICATION_ID = 0x70617366  # "pasf": what file(1) and we tell our databases from others by
FORMAT = 1  # raised with every change that an older plugin would misread

# sqlite.org/fileformat2.html: the first 100 bytes. Read by hand, because opening a foreign database
# through SQLite may already change it (recover a journal, create a -wal file beside it).
MAGIC = b"SQLite format 3\0"
HEADER_BYTES = 100
VERSION_AND_ID = struct.Struct(">60xi4xi")  # user_version, application_id

SCHEMA = """
CREATE TABLE volumes (
    name TEXT PRIMARY KEY,
    options TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT
"""


class Registry:
    """The open registry and the lock that keeps other plugins away from it; a context manager."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        records: Sequence[Record],
        owned: ExitStack,
    ) -> None:
        self.records = records
        """The volumes, by name, as they were when the registry was opened."""
        self._path = path
        self._connection = connection
        self._owned = owned
        self._turn = threading.Lock()

    @classmethod
    def open(cls, data_dir: Path) -> Self:
        """Lock *data_dir*, which must exist, and open its registry; a first one is created.

        Raises:
            CannotStart: another plugin has the lock, or the registry is damaged, foreign or newer;
                the file has not been touched.
        """
        path = data_dir / FILE_NAME
        with ExitStack() as owned:
            owned.enter_context(_locked(data_dir / LOCK_NAME))
            if not path.exists():
                _create(path)
            _refuse_foreign(path)
            connection = owned.enter_context(closing(_connect(path)))
            try:
                _make_durable(connection)
                records = _read(connection)
            except (sqlite3.Error, ValueError) as error:
                raise _refusal(path, f"it is damaged: {error}") from error
            return cls(path, connection, records, owned.pop_all())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def add(self, record: Record) -> None:
        """Write a new volume; on return it survives a power cut.

        Raises:
            RegistryFailed: nothing was written.
        """
        options = msgspec.json.encode(record.options).decode()
        values = (record.name, options, record.created_at.isoformat())
        self._change("INSERT INTO volumes (name, options, created_at) VALUES (?, ?, ?)", values)

    def remove(self, name: VolumeName) -> None:
        """Forget a volume; on return that survives a power cut.

        Raises:
            RegistryFailed: nothing was written.
        """
        self._change("DELETE FROM volumes WHERE name = ?", (name,))

    def _change(self, statement: str, values: tuple[str, ...]) -> None:
        with self._turn:
            try:
                self._connection.execute(statement, values)
            except sqlite3.Error as error:
                raise RegistryFailed(f"cannot write the registry {self._path}: {error}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold *path* against other processes; the kernel lets go when this one dies, flock(2)."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotStart(
                f"another passfs uses the data directory {path.parent}; stop it first, or give this"
                " one another PASSFS_DATA_DIR"
            ) from error
        yield
    finally:
        os.close(fd)


def _create(path: Path) -> None:
    """Make an empty registry that appears under its name only when it is whole and on disk."""
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    with closing(_connect(unfinished)) as connection:
        _make_durable(connection)
        connection.execute("BEGIN")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute(SCHEMA)
        connection.execute("COMMIT")
    unfinished.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level None: each statement commits by itself.
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def _make_durable(connection: sqlite3.Connection) -> None:
    # EXTRA is FULL, and syncs the directory as well once the journal is unlinked: without that, a
    # power cut soon after the commit brings the journal back and undoes what we have answered.
    connection.execute("PRAGMA synchronous = EXTRA")


def _refuse_foreign(path: Path) -> None:
    """Judge the file by its first bytes alone, without SQLite and without writing."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise _refusal(path, "it is no SQLite database")
    version, application_id = VERSION_AND_ID.unpack_from(header)
    if application_id != APPLICATION_ID:
        raise _refusal(path, "it is the database of another program")
    if version > FORMAT:
        raise _refusal(
            path,
            f"it was written by a newer passfs (format {version}, this one knows {FORMAT});"
            " install that version again or a later one",
        )
    if version != FORMAT:
        raise _refusal(path, f"its format is {version}, and {FORMAT} was expected")


def _read(connection: sqlite3.Connection) -> list[Record]:
    """Every volume; raises what SQLite, msgspec and we say to a damaged one."""
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    rows = connection.execute("SELECT name, options, created_at FROM volumes ORDER BY name")
    return [_record(*row) for row in rows.fetchall()]


def _record(name: str, options: str, created_at: str) -> Record:
    if NAME.fullmatch(name) is None:
        raise ValueError(f"the volume name {name!r}")
    created = datetime.fromisoformat(created_at)
    if created.tzinfo is None:
        raise ValueError(f"the time {created_at!r}, which has no zone")
    return Record(
        name=VolumeName(name),
        options=msgspec.json.decode(options, type=dict[str, str]),
        created_at=created,
    )


def _refusal(path: Path, reason: str) -> CannotStart:
    return CannotStart(
        f"cannot use the registry {path}: {reason}; it has been left as it is,"
        " restore it from a backup or move it away to start without volumes"
    )
