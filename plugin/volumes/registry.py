"""The volumes on disk, and who uses them: one SQLite database, written before any answer.

A registry that cannot be read stops the plugin and is left as it is. It is never taken for an empty
one: dockerd forgets a volume, with its options, when Get says that it does not exist.

    volumes   what Create was asked for, and what the volume's directory is called
    refs      for each volume, how many mounts each mount id has that have not been given back
    dead      the same of mounts whose worker or plugin has ended
    served    for each mount that was served when its volume was last used or given back, also for
              a detached one, what it takes to go on serving it after a restart
    boot      which run of the machine `refs`, `dead` and `served` are of: no mount outlives it

All of it blocks. One connection serves every thread, one change at a time; each change is a single
transaction and so is whole or absent after a crash.
"""

import os
import sqlite3
import stat
import struct
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from plugin.errors import CannotStart, RegistryFailed
from plugin.reserve import LastingReserve
from plugin.volume import Record, Served, VolumeName, file_name
from plugin.volumes import database, old_names

FILE_NAME = "passfs.db"
LOCK_NAME = "passfs.lock"
PRIVATE_MODE = 0o600

APPLICATION_ID = 0x70617366  # "pasf": what file(1) and we tell our databases from others by
FORMAT = 3  # raised with every change that an older plugin would misread
FORMAT_OF_DIRECTORIES = 3
"""The first one that says the directories of volumes, and the dead references."""

# sqlite.org/fileformat2.html: the first 100 bytes. Read by hand, because opening a foreign database
# through SQLite may already change it (recover a journal, create a -wal file beside it).
MAGIC = b"SQLite format 3\0"
HEADER_BYTES = 100
VERSION_AND_ID = struct.Struct(">60xi4xi")  # user_version, application_id

# What each format has that the one before had not: a new registry goes through all of them, and one
# that an older passfs has written through those that it lacks.
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

# Another after each start of the machine, random(4).
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Statement = tuple[str, tuple[str | int, ...]]


class Contents(NamedTuple):
    """What a registry holds."""

    records: Sequence[Record]
    """The volumes, by name."""
    references: Mapping[VolumeName, Counter[str]]
    """How often each mount id has a volume mounted; nothing of a volume that nobody uses."""
    served: Sequence[Served]
    """The mounts that were there."""
    dead: Mapping[VolumeName, Counter[str]]
    """How often each mount id has a mount of a volume that is dead."""


class Registry:
    """The open registry and the lock that keeps other plugins away from it; a context manager."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        contents: Contents,
        owned: ExitStack,
        reserve: LastingReserve,
    ) -> None:
        # All four as they were when the registry was opened.
        self.records, self.references, self.served, self.dead = contents
        self._path = path
        self._connection = connection
        self._owned = owned
        self._turn = threading.Lock()
        self.reserve = reserve
        """Room for all that must be possible on a full disk; a new volume is not."""

    @classmethod
    def open(cls, data_dir: Path, boot_id: str = "") -> Self:
        """Lock *data_dir*, which must exist, and open its registry; a first one is created.

        What was mounted before the machine was started is forgotten; *boot_id* says which start
        that was, and is the kernel's own unless it is given.

        Raises:
            CannotStart: another plugin has the lock, or the registry is damaged, foreign or newer;
                the file has not been touched.
        """
        path, reserve = data_dir / FILE_NAME, LastingReserve(data_dir)
        with ExitStack() as owned:
            owned.enter_context(database.locked(data_dir / LOCK_NAME))
            if not path.exists():
                _create(path)
            _refuse_foreign(path)
            _make_private(path)
            connection = owned.enter_context(closing(database.connect(path)))
            try:
                _configure(connection)
                contents, boot = _read(connection)
            except (sqlite3.Error, ValueError) as error:
                raise _refusal(path, f"it is damaged: {error}") from error
            try:
                here = boot_id or BOOT_ID.read_text().strip()
                if boot != here:
                    contents = Contents(contents.records, {}, [], {})
                begin = partial(_begin, connection, path, here if boot != here else "")
                reserve.run(begin)
            except (sqlite3.Error, OSError) as error:
                raise CannotStart(f"cannot write the registry {path}: {_reason(error)}") from error
            return cls(path, connection, contents, owned.pop_all(), reserve)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def add(self, record: Record) -> None:
        """Write a new volume, if there is room without the reserve; it survives a power cut.

        Raises:
            RegistryFailed: nothing was written.
        """
        options = msgspec.json.encode(record.options).decode()
        values = (record.name, record.directory, options, record.created_at.isoformat())
        insert = "INSERT INTO volumes (name, directory, options, created_at) VALUES (?, ?, ?, ?)"
        with self._reported():
            self._execute([(insert, values)])

    def remove(self, name: VolumeName) -> None:
        """Forget a volume and its users; on return that survives a power cut.

        Raises:
            RegistryFailed: nothing was written.
        """
        self._change([("DELETE FROM volumes WHERE name = ?", (name,))])

    def use(
        self,
        name: VolumeName,
        references: Mapping[str, int],
        served: Iterable[Served] = (),
        dead: Mapping[str, int] | None = None,
    ) -> None:
        """Write who uses the volume *name*, and by which mounts: after a Mount, before an unmount.

        Each is all that there are, *references* and *dead* with counts above zero; *served* may be
        those of users who have given the volume back and still have files open.

        Raises:
            RegistryFailed: nothing was written.
        """
        self._change(
            [
                *_using("refs", name, references),
                *_using("dead", name, dead or {}),
                *_serving(name, served),
            ]
        )

    def _change(self, statements: Sequence[Statement]) -> None:
        """Execute all of *statements*, or none, if need be in the room that is set aside."""
        with self._reported():
            self.reserve.run(partial(self._execute, statements))

    def _execute(self, statements: Iterable[Statement]) -> None:
        with database.transaction(self._connection, self._path):
            for statement, values in statements:
                self._connection.execute(statement, values)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        with self._turn:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                reason = f"cannot write the registry {self._path}: {_reason(error)}"
                raise RegistryFailed(reason) from error


def _reason(error: sqlite3.Error | OSError) -> str:
    return str(getattr(error, "strerror", "") or error)


def _using(table: str, name: VolumeName, references: Mapping[str, int]) -> Iterator[Statement]:
    yield f"DELETE FROM {table} WHERE volume = ?", (name,)  # noqa: S608 - a name of ours
    insert = f"INSERT INTO {table} (volume, id, count) VALUES (?, ?, ?)"  # noqa: S608
    for mount_id, count in references.items():
        yield insert, (name, mount_id, count)


def _serving(name: VolumeName, served: Iterable[Served]) -> Iterator[Statement]:
    yield "DELETE FROM served WHERE volume = ?", (name,)
    for mount in served:
        insert = "INSERT INTO served (volume, number, device, report) VALUES (?, ?, ?, ?)"
        yield insert, mount


def _create(path: Path) -> None:
    """Make an empty registry that appears under its name only when it is whole and on disk."""
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    # Before SQLite makes it by the umask; a journal gets the mode of its database.
    os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_MODE))
    with closing(database.connect(unfinished)) as connection:
        _configure(connection)
        with database.transaction(connection, unfinished):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _update(connection)
    unfinished.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _make_private(path: Path) -> None:
    """Take the registry from other users: options of volumes name directories of the host."""
    try:
        if stat.S_IMODE(path.stat().st_mode) != PRIVATE_MODE:
            path.chmod(PRIVATE_MODE)
    except OSError as error:
        raise CannotStart(f"cannot make the registry {path} private: {error.strerror}") from error


def _configure(connection: sqlite3.Connection) -> None:
    # EXTRA is FULL, and syncs the directory as well once the journal is unlinked: without that, a
    # power cut soon after the commit brings the journal back and undoes what we have answered.
    connection.execute("PRAGMA synchronous = EXTRA")
    connection.execute("PRAGMA foreign_keys = ON")


def _update(connection: sqlite3.Connection) -> None:
    """Give a registry what its format lacks; within a transaction."""
    connection.create_function("old_directory", 1, old_names.directory_of, deterministic=True)
    for step in range(_format(connection) + 1, FORMAT + 1):
        for statement in STEPS[step]:
            connection.execute(statement)
    if _format(connection) != FORMAT:
        connection.execute(f"PRAGMA user_version = {FORMAT}")


def _format(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _begin(connection: sqlite3.Connection, path: Path, boot_id: str) -> None:
    """Bring the registry up to date, and to another run of the machine if *boot_id* says so."""
    with database.transaction(connection, path):
        _update(connection)
        if boot_id:
            _begin_anew(connection, boot_id)


def _begin_anew(connection: sqlite3.Connection, boot_id: str) -> None:
    """Forget what was mounted before the machine was started; within a transaction."""
    for table in ("refs", "dead", "served", "boot"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 - our own four names
    connection.execute("INSERT INTO boot (id) VALUES (?)", (boot_id,))


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
    if version not in STEPS:
        raise _refusal(path, f"its format is {version}, and 1 to {FORMAT} was expected")


def _read(connection: sqlite3.Connection) -> tuple[Contents, str]:
    """All that is there, and the boot id; raises what SQLite, msgspec and we say to a damaged one.

    The format is asked for once more: what was in the file's first bytes may have been the half of
    a change, which SQLite has taken back by now.
    """
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    records = [_record(*row) for row in _volumes(connection)]
    if _format(connection) == 1:
        return Contents(records, {}, [], {}), ""
    orphan = connection.execute("PRAGMA foreign_key_check").fetchone()
    if orphan is not None:
        raise ValueError(f"a row of {orphan[0]} is of no volume")
    references = _counts(connection.execute("SELECT volume, id, count FROM refs"))
    dead: dict[VolumeName, Counter[str]] = {}
    if _format(connection) >= FORMAT_OF_DIRECTORIES:
        dead = _counts(connection.execute("SELECT volume, id, count FROM dead"))
    rows = connection.execute("SELECT volume, number, device, report FROM served ORDER BY number")
    served = [Served(*row) for row in rows.fetchall()]
    boots = [boot for (boot,) in connection.execute("SELECT id FROM boot")]
    return Contents(records, references, served, dead), boots[0] if len(boots) == 1 else ""


def _counts(rows: Iterable[tuple[VolumeName, str, int]]) -> dict[VolumeName, Counter[str]]:
    counts: dict[VolumeName, Counter[str]] = {}
    for name, mount_id, count in rows:
        counts.setdefault(name, Counter())[mount_id] = count
    return counts


def _volumes(connection: sqlite3.Connection) -> list[tuple[str, str, str, str]]:
    if _format(connection) < FORMAT_OF_DIRECTORIES:
        rows = connection.execute("SELECT name, options, created_at FROM volumes ORDER BY name")
        return [(name, old_names.directory_of(name), *rest) for name, *rest in rows]
    select = "SELECT name, directory, options, created_at FROM volumes ORDER BY name"
    return connection.execute(select).fetchall()


def _record(name: str, directory: str, options: str, created_at: str) -> Record:
    created = datetime.fromisoformat(created_at)
    if created.tzinfo is None:
        raise ValueError(f"the time {created_at!r}, which has no zone")
    return Record(
        name=VolumeName(name),
        directory=file_name(directory),
        options=msgspec.json.decode(options, type=dict[str, str]),
        created_at=created,
    )


def _refusal(path: Path, reason: str) -> CannotStart:
    return CannotStart(
        f"cannot use the registry {path}: {reason}; it has been left as it is,"
        " restore it from a backup or move it away to start without volumes"
    )
