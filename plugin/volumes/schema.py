"""The registry's file: its tables, the upgrade of an older format, and the check of its contents.

    volumes   the arguments of each Create, and the name of the volume's directory
    refs      the count of Mounts without an Unmount, for each volume and mount id
    dead      the count of such Mounts whose mount has lost its worker or plugin
    served    the facts about each mount, also a detached one, that the next plugin needs to keep
              the mount; written after a Mount and before an unmount
    boot      the boot of the machine that `refs`, `dead` and `served` are of: no mount outlives it

Each older format is upgraded when the registry is opened.
"""

import os
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from plugin.errors import CannotStart
from plugin.volume import MountRecord, Record, VolumeName, file_name
from plugin.volumes import database, old_names

PRIVATE_MODE = 0o600

APPLICATION_ID = 0x70617366  # "pasf": for file(1), and to recognise our databases
FORMAT = 3  # raised with every change that an older plugin would misread
FORMAT_WITH_DIRECTORIES = 3
"""The first format with the names of directories and the table `dead`."""

# sqlite.org/fileformat2.html: the first 100 bytes. Read without SQLite, which may change a foreign
# database when it opens it: recover a journal, or create a -wal file beside it.
MAGIC = b"SQLite format 3\0"
HEADER_BYTES = 100
VERSION_AND_ID = struct.Struct(">60xi4xi")  # user_version, application_id

RESTORE = "restore the file from a backup, or move it away to start without volumes"
"""The remedy for a registry that is damaged or foreign."""

# The statements that turn the format before into this one. A new registry takes all steps; an older
# one takes those that it lacks.
STEPS: Mapping[int, tuple[str, ...]] = {
    1: (
        """
        CREATE TABLE volumes (
            name TEXT PRIMARY KEY,
            options TEXT NOT NULL,
            created_at TEXT NOT NULL
        ) STRICT
        """,
    ),
    2: (
        "CREATE TABLE boot (id TEXT NOT NULL) STRICT",
        """
        CREATE TABLE refs (
            volume TEXT NOT NULL REFERENCES volumes ON DELETE CASCADE,
            id TEXT NOT NULL,
            count INTEGER NOT NULL CHECK (count > 0),
            PRIMARY KEY (volume, id)
        ) STRICT
        """,
        """
        CREATE TABLE served (
            number INTEGER PRIMARY KEY,
            volume TEXT NOT NULL REFERENCES volumes ON DELETE CASCADE,
            device INTEGER NOT NULL,
            report TEXT NOT NULL
        ) STRICT
        """,
    ),
    3: (
        "ALTER TABLE volumes ADD COLUMN directory TEXT NOT NULL DEFAULT ''",
        "UPDATE volumes SET directory = old_directory(name)",
        "CREATE UNIQUE INDEX directories ON volumes (directory)",
        """
        CREATE TABLE dead (
            volume TEXT NOT NULL REFERENCES volumes ON DELETE CASCADE,
            id TEXT NOT NULL,
            count INTEGER NOT NULL CHECK (count > 0),
            PRIMARY KEY (volume, id)
        ) STRICT
        """,
    ),
}


class Contents(NamedTuple):
    """The contents of a registry."""

    records: Sequence[Record]
    """The volumes, by name."""
    references: Mapping[VolumeName, Counter[str]]
    """The count of references by mount id, for each volume that has any."""
    mount_records: Sequence[MountRecord]
    """The rows of the table `served`."""
    dead: Mapping[VolumeName, Counter[str]]
    """The count of dead references by mount id, for each volume that has any."""


def create(path: Path) -> None:
    """Create an empty registry, which appears at *path* only when it is whole and on disk."""
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    # SQLite would create the file by the umask. It gives a journal the mode of its database.
    os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_MODE))
    with closing(database.connect(unfinished)) as connection:
        configure(connection)
        with database.transaction(connection, unfinished):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            upgrade(connection)
    unfinished.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def configure(connection: sqlite3.Connection) -> None:
    """Set up *connection* so that a commit survives a power cut."""
    # EXTRA is FULL plus a sync of the directory after the journal is unlinked. Without that sync, a
    # power cut soon after the commit may bring the journal back, which undoes the commit.
    connection.execute("PRAGMA synchronous = EXTRA")
    connection.execute("PRAGMA foreign_keys = ON")


def upgrade(connection: sqlite3.Connection) -> None:
    """Bring the tables to FORMAT; call it within a transaction."""
    connection.create_function("old_directory", 1, old_names.directory_of, deterministic=True)
    for step in range(_format(connection) + 1, FORMAT + 1):
        for statement in STEPS[step]:
            connection.execute(statement)
    if _format(connection) != FORMAT:
        connection.execute(f"PRAGMA user_version = {FORMAT}")


def _format(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def refuse_foreign(path: Path) -> None:
    """Refuse a file that is no registry, or is newer, by its first bytes and without SQLite.

    Raises:
        CannotStart: says what the file is instead.
    """
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise refusal(path, "it is no SQLite database")
    version, application_id = VERSION_AND_ID.unpack_from(header)
    if application_id != APPLICATION_ID:
        raise refusal(path, "it is the database of another program")
    if version > FORMAT:
        raise refusal(
            path,
            f"it was written by a newer passfs (format {version}, this one knows {FORMAT})",
            "install that passfs again, or a later one; or move the file away to start without"
            " volumes",
        )
    if version not in STEPS:
        raise refusal(path, f"its format is {version}, but 1 to {FORMAT} was expected")


def refusal(path: Path, reason: str, remedy: str = RESTORE) -> CannotStart:
    """Return the refusal of the registry at *path* for *reason*, with the *remedy*."""
    return CannotStart(
        f"cannot use the registry {path}: {reason}; it has been left as it is: {remedy}"
    )


def read(connection: sqlite3.Connection) -> tuple[Contents, str]:
    """Return the contents and the boot id.

    The format is read again: the file's first bytes may be of an unfinished transaction, which
    SQLite has rolled back since.

    Raises:
        sqlite3.Error: the database is damaged.
        ValueError: a row is damaged.
    """
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    records = [_record(*row) for row in _volumes(connection)]
    if _format(connection) == 1:
        return Contents(records, {}, [], {}), ""
    orphan = connection.execute("PRAGMA foreign_key_check").fetchone()
    if orphan is not None:
        raise ValueError(f"table {orphan[0]!r} has a row of a volume that table 'volumes' lacks")
    references = _counts(connection.execute("SELECT volume, id, count FROM refs"))
    dead: dict[VolumeName, Counter[str]] = {}
    if _format(connection) >= FORMAT_WITH_DIRECTORIES:
        dead = _counts(connection.execute("SELECT volume, id, count FROM dead"))
    rows = connection.execute("SELECT volume, number, device, report FROM served ORDER BY number")
    served = [MountRecord(*row) for row in rows.fetchall()]
    boots = [boot for (boot,) in connection.execute("SELECT id FROM boot")]
    return Contents(records, references, served, dead), boots[0] if len(boots) == 1 else ""


def _counts(rows: Iterable[tuple[VolumeName, str, int]]) -> dict[VolumeName, Counter[str]]:
    counts: dict[VolumeName, Counter[str]] = {}
    for name, mount_id, count in rows:
        counts.setdefault(name, Counter())[mount_id] = count
    return counts


def _volumes(connection: sqlite3.Connection) -> list[tuple[str, str, str, str]]:
    if _format(connection) < FORMAT_WITH_DIRECTORIES:
        rows = connection.execute("SELECT name, options, created_at FROM volumes ORDER BY name")
        return [(name, old_names.directory_of(name), *others) for name, *others in rows]
    select = "SELECT name, directory, options, created_at FROM volumes ORDER BY name"
    return connection.execute(select).fetchall()


def _record(name: str, directory: str, options: str, created_at: str) -> Record:
    created = datetime.fromisoformat(created_at)
    if created.tzinfo is None:
        raise ValueError(f"created_at {created_at!r} has no time zone")
    return Record(
        name=VolumeName(name),
        directory=file_name(directory),
        options=msgspec.json.decode(options, type=dict[str, str]),
        created_at=created,
    )
