"""The registry: the volumes, their references and their mounts, in one SQLite database.

Each change is on disk before the request is answered. It is one transaction, so a crash leaves all
of it or nothing. A registry that cannot be read stops the plugin and stays as it is. It is never
replaced by an empty one: dockerd forgets a volume, with its options, if Get does not know it.

All functions block. All threads share one connection, which makes one change at a time.
"""

import sqlite3
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Self

import msgspec

from plugin.errors import CannotStart, RegistryFailed
from plugin.reserve import LastingReserve
from plugin.volume import MountRecord, Record, VolumeName
from plugin.volumes import database, schema
from plugin.volumes.schema import Contents

FILE_NAME = "passfs.db"
LOCK_NAME = "passfs.lock"

# A new value at each boot of the machine, random(4).
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Statement = tuple[str, tuple[str | int, ...]]


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
        # The contents at the time of `open`; later changes do not show here.
        self.records, self.references, self.mount_records, self.dead = contents
        self._path = path
        self._connection = connection
        self._owned = owned
        self._lock = threading.Lock()
        self.reserve = reserve
        """Disk space for every change that must succeed on a full disk: all but a new volume."""

    @classmethod
    def open(cls, data_dir: Path, boot_id: str = "") -> Self:
        """Lock *data_dir*, which must exist, and open its registry; create a missing one.

        References and mounts of an earlier boot are deleted. *boot_id* is that of the present boot;
        the kernel's own unless it is given.

        Raises:
            CannotStart: another plugin has the lock, or the registry is damaged, foreign or newer;
                the file has not been touched.
        """
        path, reserve = data_dir / FILE_NAME, LastingReserve(data_dir)
        with ExitStack() as owned:
            owned.enter_context(database.locked(data_dir / LOCK_NAME))
            if not path.exists():
                schema.create(path)
            schema.refuse_foreign(path)
            _make_private(path)
            connection = owned.enter_context(closing(database.connect(path)))
            try:
                schema.configure(connection)
                contents, boot = schema.read(connection)
            except (sqlite3.Error, ValueError) as error:
                raise schema.refusal(path, f"it is damaged: {error}") from error
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
        """Write a new volume, without use of the reserve; on return it survives a power cut.

        Raises:
            RegistryFailed: nothing was written.
        """
        options = msgspec.json.encode(record.options).decode()
        values = (record.name, record.directory, options, record.created_at.isoformat())
        insert = "INSERT INTO volumes (name, directory, options, created_at) VALUES (?, ?, ?, ?)"
        with self._locked_and_reported():
            self._execute([(insert, values)])

    def change(self, record: Record, mount_records: Iterable[MountRecord]) -> None:
        """Write other options of a volume, and its mounts as `write_references` does.

        On return the change survives a power cut.

        Raises:
            RegistryFailed: nothing was written.
        """
        options = msgspec.json.encode(record.options).decode()
        update = "UPDATE volumes SET options = ? WHERE name = ?"
        mounts = _replace_served(record.name, mount_records)
        self._change([(update, (options, record.name)), *mounts])

    def remove(self, name: VolumeName) -> None:
        """Delete a volume and its references; on return the change survives a power cut.

        Raises:
            RegistryFailed: nothing was written.
        """
        self._change([("DELETE FROM volumes WHERE name = ?", (name,))])

    def write_references(
        self,
        name: VolumeName,
        references: Mapping[str, int],
        mount_records: Iterable[MountRecord] = (),
        dead: Mapping[str, int] | None = None,
    ) -> None:
        """Write the references and mounts of the volume *name*, after a Mount or before an unmount.

        The arguments replace all rows of the volume. Counts are above zero. *mount_records* may
        include detached mounts with open files.

        Raises:
            RegistryFailed: nothing was written.
        """
        self._change(
            [
                *_replace_counts("refs", name, references),
                *_replace_counts("dead", name, dead or {}),
                *_replace_served(name, mount_records),
            ]
        )

    def _change(self, statements: Sequence[Statement]) -> None:
        """Execute all of *statements* or none; on a full disk, use the reserve."""
        with self._locked_and_reported():
            self.reserve.run(partial(self._execute, statements))

    def _execute(self, statements: Iterable[Statement]) -> None:
        with database.transaction(self._connection, self._path):
            for statement, values in statements:
                self._connection.execute(statement, values)

    @contextmanager
    def _locked_and_reported(self) -> Iterator[None]:
        """Hold the lock; raise RegistryFailed for an error."""
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                reason = f"cannot write the registry {self._path}: {_reason(error)}"
                raise RegistryFailed(reason) from error


def _reason(error: sqlite3.Error | OSError) -> str:
    return str(getattr(error, "strerror", "") or error)


def _replace_counts(table: str, name: VolumeName, counts: Mapping[str, int]) -> Iterator[Statement]:
    yield f"DELETE FROM {table} WHERE volume = ?", (name,)  # noqa: S608 - `refs` or `dead`
    insert = f"INSERT INTO {table} (volume, id, count) VALUES (?, ?, ?)"  # noqa: S608
    for mount_id, count in counts.items():
        yield insert, (name, mount_id, count)


def _replace_served(name: VolumeName, mount_records: Iterable[MountRecord]) -> Iterator[Statement]:
    yield "DELETE FROM served WHERE volume = ?", (name,)
    for mount in mount_records:
        insert = "INSERT INTO served (volume, number, device, report) VALUES (?, ?, ?, ?)"
        yield insert, mount


def _make_private(path: Path) -> None:
    """Let only root read the registry, because options of volumes name directories of the host."""
    try:
        if stat.S_IMODE(path.stat().st_mode) != schema.PRIVATE_MODE:
            path.chmod(schema.PRIVATE_MODE)
    except OSError as error:
        raise CannotStart(f"cannot make the registry {path} private: {error.strerror}") from error


def _begin(connection: sqlite3.Connection, path: Path, boot_id: str) -> None:
    """Upgrade the tables; if *boot_id* is not empty, delete the rows of an earlier boot."""
    with database.transaction(connection, path):
        schema.upgrade(connection)
        if boot_id:
            for table in ("refs", "dead", "served", "boot"):
                connection.execute(f"DELETE FROM {table}")  # noqa: S608 - these four names
            connection.execute("INSERT INTO boot (id) VALUES (?)", (boot_id,))
