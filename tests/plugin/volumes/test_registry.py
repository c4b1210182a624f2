"""registry.py, schema.py: durable, whole after any crash, and refused rather than misread."""

import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest

from plugin.errors import CannotStart, RegistryFailed
from plugin.volume import FileName, MountRecord, Record, VolumeName
from plugin.volumes import schema
from plugin.volumes.registry import FILE_NAME, Registry
from tests.support.tools.records import record


def names(data_dir: Path) -> list[str]:
    with Registry.open(data_dir) as opened:
        return [each.name for each in opened.records]


def test_a_first_registry_is_empty(tmp_path: Path) -> None:
    assert names(tmp_path) == []


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    paris = timezone(timedelta(hours=1))
    records = [
        Record(
            name=VolumeName("a"),
            directory=FileName("@a"),
            options={"source": "/srv/ä \U0001f600", "ro": "", 'x"\\': "\0\n"},
            created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=paris),
        ),
        record("b"),
    ]
    with Registry.open(tmp_path) as opened:
        for each in reversed(records):
            opened.add(each)
    with Registry.open(tmp_path) as opened:
        assert opened.records == records
        opened.remove(VolumeName("a"))
        opened.remove(VolumeName("none"))
    assert names(tmp_path) == ["b"]


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Set a umask that clears no bit."""
    former = os.umask(0)
    yield
    os.umask(former)


def modes(data_dir: Path) -> dict[str, int]:
    found = {file.name: stat.S_IMODE(file.stat().st_mode) for file in data_dir.iterdir()}
    assert found.pop("reserve", 0o700) == 0o700
    return found


@pytest.mark.usefixtures("open_umask")
def test_a_new_registry_is_private_from_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, int]] = []
    update = schema.upgrade

    def looking(connection: sqlite3.Connection) -> None:
        update(connection)
        seen.append(modes(tmp_path))

    monkeypatch.setattr(schema, "upgrade", looking)
    names(tmp_path)

    assert {name for made in seen for name in made} == {
        *("passfs.lock", "passfs.new", "passfs.new-journal", "passfs.db"),
    }
    assert {mode for made in (*seen, modes(tmp_path)) for mode in made.values()} == {0o600}


@pytest.mark.usefixtures("open_umask")
def test_a_readable_registry_is_made_private(tmp_path: Path) -> None:
    names(tmp_path)
    (tmp_path / "passfs.db").chmod(0o644)

    with Registry.open(tmp_path) as opened:
        opened.add(record("a"))
        with closing(sqlite3.connect(tmp_path / "passfs.db", isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("DELETE FROM volumes")
            during = modes(tmp_path)
            writer.execute("ROLLBACK")

    assert during == {"passfs.lock": 0o600, "passfs.db": 0o600, "passfs.db-journal": 0o600}


def test_a_name_is_unique(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as opened:
        opened.add(record("a", cache="never"))
        with pytest.raises(RegistryFailed, match=r"cannot write the registry .*passfs\.db: UNIQUE"):
            opened.add(record("a"))
    with Registry.open(tmp_path) as opened:
        assert opened.records[0].options == {"cache": "never"}


def test_a_directory_is_unique(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as opened:
        opened.add(record("a"))
        with pytest.raises(RegistryFailed, match=r"cannot write .*UNIQUE .*volumes\.directory"):
            opened.add(msgspec.structs.replace(record("b"), directory=FileName("a")))
    assert names(tmp_path) == ["a"]


def test_one_plugin_at_a_time_uses_a_data_directory(tmp_path: Path) -> None:
    refused = pytest.raises(CannotStart, match="another passfs uses the data directory")
    with Registry.open(tmp_path), refused:
        Registry.open(tmp_path)
    assert names(tmp_path) == []


def test_commits_are_synced(tmp_path: Path) -> None:
    """A power cut undoes no answered change: 3 is EXTRA."""
    with Registry.open(tmp_path) as opened:
        assert opened._connection.execute("PRAGMA synchronous").fetchone() == (3,)
        assert opened._connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


# References and mounts.


A, B = VolumeName("a"), VolumeName("b")


def in_use(
    data_dir: Path, boot_id: str = ""
) -> tuple[dict[VolumeName, dict[str, int]], list[MountRecord]]:
    """Return the references and the mounts that the next plugin finds."""
    with Registry.open(data_dir, boot_id) as opened:
        return {name: dict(count) for name, count in opened.references.items()}, [
            *opened.mount_records
        ]


@pytest.fixture
def two_in_use(tmp_path: Path) -> Path:
    """Return a data directory with two mounted volumes, one of them mounted twice in succession."""
    with Registry.open(tmp_path) as opened:
        opened.add(record("a"))
        opened.add(record("b"))
        opened.write_references(A, {"x": 1}, [MountRecord(A, 1, 40, "{}")])
        opened.write_references(B, {"x": 1}, [MountRecord(B, 2, 41, '{"serving":true}')])
        opened.write_references(A, {"x": 2, "y": 1}, [MountRecord(A, 3, 42, "{}")])
    return tmp_path


def test_references_and_mounts_are_read_as_they_were_written(two_in_use: Path) -> None:
    assert in_use(two_in_use) == (
        {A: {"x": 2, "y": 1}, B: {"x": 1}},
        [MountRecord(B, 2, 41, '{"serving":true}'), MountRecord(A, 3, 42, "{}")],
    )


def test_a_mount_is_recorded_until_the_last_unmount(two_in_use: Path) -> None:
    with Registry.open(two_in_use) as opened:
        opened.write_references(A, {"y": 1}, [MountRecord(A, 3, 42, "{}")])
        opened.write_references(B, {})
    assert in_use(two_in_use) == ({A: {"y": 1}}, [MountRecord(A, 3, 42, "{}")])


def test_detached_mounts_of_a_volume_can_be_recorded(two_in_use: Path) -> None:
    """Beside the present mount, or alone: their workers serve open files."""
    mounts = [MountRecord(A, 3, 42, "{}"), MountRecord(A, 5, 44, "{}")]
    with Registry.open(two_in_use) as opened:
        opened.write_references(B, {})
        opened.write_references(A, {"y": 1}, mounts)
    assert in_use(two_in_use) == ({A: {"y": 1}}, mounts)
    with Registry.open(two_in_use) as opened:
        opened.write_references(A, {}, mounts)
    assert in_use(two_in_use) == ({}, mounts)


def test_references_can_be_recorded_without_a_mount(two_in_use: Path) -> None:
    with Registry.open(two_in_use) as opened:
        opened.write_references(A, {"z": 1})
    assert in_use(two_in_use)[0][A] == {"z": 1}
    assert [served.number for served in in_use(two_in_use)[1]] == [2]


def test_a_removal_deletes_references_and_mounts(two_in_use: Path) -> None:
    with Registry.open(two_in_use) as opened:
        opened.remove(A)
    assert in_use(two_in_use) == ({B: {"x": 1}}, [MountRecord(B, 2, 41, '{"serving":true}')])


def test_a_reboot_deletes_references_and_mounts(two_in_use: Path) -> None:
    assert in_use(two_in_use, "another") == ({}, [])
    assert in_use(two_in_use, "another") == ({}, [])
    assert in_use(two_in_use) == ({}, [])
    assert names(two_in_use) == ["a", "b"]


def test_the_boot_id_is_the_kernel_s(two_in_use: Path) -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert len(in_use(two_in_use, boot_id)[1]) == 2


@pytest.mark.parametrize(
    "served",
    [MountRecord(A, 2, 42, "{}"), MountRecord(VolumeName("none"), 4, 42, "{}")],
    ids=["a number of another", "of no volume"],
)
def test_references_and_mounts_are_written_in_one_transaction(
    two_in_use: Path, served: MountRecord
) -> None:
    before = in_use(two_in_use)
    with Registry.open(two_in_use) as opened:
        with pytest.raises(RegistryFailed, match=r"cannot write the registry .*constraint failed"):
            opened.write_references(A, {"z": 1}, [served])
        opened.add(record("c"))  # the next transaction is not affected
    assert in_use(two_in_use) == before
    assert names(two_in_use) == ["a", "b", "c"]


# A registry of an older passfs.


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Return a data directory of format 1, with two volumes."""
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        connection.execute(
            "CREATE TABLE volumes"
            " (name TEXT PRIMARY KEY, options TEXT NOT NULL, created_at TEXT NOT NULL) STRICT"
        )
        for name in ("a", "b"):
            values = (name, '{"cache":"never"}', "2026-01-02T03:04:05+01:00")
            connection.execute("INSERT INTO volumes VALUES (?, ?, ?)", values)
    return tmp_path


def test_the_volumes_of_an_older_passfs_are_kept(older: Path) -> None:
    for _ in "12":
        with Registry.open(older) as opened:
            assert [each.name for each in opened.records] == ["a", "b"]
            assert [each.directory for each in opened.records] == ["a", "b"]
            assert opened.records[0].options == {"cache": "never"}
            opened.write_references(A, {"x": 1}, [MountRecord(A, 1, 40, "{}")])
    assert in_use(older) == ({A: {"x": 1}}, [MountRecord(A, 1, 40, "{}")])


def test_the_header_shows_the_format_to_an_older_passfs(older: Path) -> None:
    names(older)
    header = (older / FILE_NAME).read_bytes()[: schema.HEADER_BYTES]
    assert schema.VERSION_AND_ID.unpack_from(header) == (3, schema.APPLICATION_ID)


def test_an_interrupted_upgrade_is_repeated(older: Path) -> None:
    """As if killed after the last write, but before the journal, which undoes it, is unlinked."""
    path, journal = older / FILE_NAME, older / f"{FILE_NAME}-journal"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        schema.upgrade(connection)
        os.link(journal, older / "kept")
        connection.execute("COMMIT")
    (older / "kept").rename(journal)
    assert schema.VERSION_AND_ID.unpack_from(path.read_bytes())[0] == schema.FORMAT

    assert names(older) == ["a", "b"]
    assert in_use(older) == ({}, [])
    assert not journal.exists()


def test_a_failed_upgrade_stops_the_start(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def configure_as_on_a_full_disk(connection: sqlite3.Connection) -> None:
        configure(connection)
        connection.execute("PRAGMA max_page_count = 1")

    configure = schema.configure
    before = (older / FILE_NAME).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "configure", configure_as_on_a_full_disk)
        with pytest.raises(CannotStart, match=r"cannot write the registry .*disk is full"):
            Registry.open(older)
    assert (older / FILE_NAME).read_bytes() == before
    assert names(older) == ["a", "b"]


def _rewrite(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def _foreign(path: Path) -> None:
    path.unlink()
    _rewrite(path, "CREATE TABLE volumes (name TEXT)")


def _damage_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xa5" * 4096
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "it is no SQLite database"),
    "text": (lambda path: path.write_bytes(b"volumes\n" * 100), "it is no SQLite database"),
    "foreign": (_foreign, "it is the database of another program"),
    "newer": (
        lambda path: _rewrite(path, "PRAGMA user_version = 4"),
        r"it was written by a newer passfs \(format 4, this one knows 3\);.*install that",
    ),
    "no format": (lambda path: _rewrite(path, "PRAGMA user_version = 0"), "its format is 0"),
    "truncated": (lambda path: os.truncate(path, 5000), "it is damaged: "),
    "overwritten": (_damage_pages, "it is damaged: "),
    "no table": (lambda path: _rewrite(path, "DROP TABLE volumes"), "it is damaged: no such table"),
    "options": (
        lambda path: _rewrite(path, "UPDATE volumes SET options = '[1]'"),
        "it is damaged: Expected `object`",
    ),
    "directory": (
        lambda path: _rewrite(path, "UPDATE volumes SET directory = '../../etc'"),
        "it is damaged: '../../etc' is no name of a file",
    ),
    "no table of users": (
        lambda path: _rewrite(path, "DROP TABLE refs"),
        "it is damaged: no such table: refs",
    ),
    "a user of nothing": (
        lambda path: _rewrite(path, "INSERT INTO refs VALUES ('none', 'id', 1)"),
        "it is damaged: table 'refs' has a row of a volume that table 'volumes' lacks",
    ),
    "a mount of nothing": (
        lambda path: _rewrite(path, "INSERT INTO served VALUES (1, 'none', 2, '{}')"),
        "it is damaged: table 'served' has a row of a volume that table 'volumes' lacks",
    ),
    "time": (
        lambda path: _rewrite(path, "UPDATE volumes SET created_at = '2026-01-01T00:00:00'"),
        "it is damaged: created_at '2026-01-01T00:00:00' has no time zone",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unreadable_registry_is_refused_and_unchanged(tmp_path: Path, damage: str) -> None:
    with Registry.open(tmp_path) as opened:
        opened.add(record("a"))
    path = tmp_path / FILE_NAME
    inflict, sentence = DAMAGES[damage]
    inflict(path)
    before = path.read_bytes()

    with pytest.raises(CannotStart, match=sentence) as refusal:
        Registry.open(tmp_path)
    assert f"cannot use the registry {path}: " in str(refusal.value)
    assert "it has been left as it is" in str(refusal.value)
    assert path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"passfs.db", "passfs.lock", "reserve"}


def test_a_foreign_database_with_a_wal_file_is_unchanged(tmp_path: Path) -> None:
    """SQLite would merge a -wal file into the database when it opens it."""
    theirs, data_dir = tmp_path / "theirs", tmp_path / "data"
    theirs.mkdir()
    data_dir.mkdir()
    with closing(sqlite3.connect(theirs / "x.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        connection.commit()
        shutil.copy(theirs / "x.db", data_dir / "passfs.db")
        shutil.copy(theirs / "x.db-wal", data_dir / "passfs.db-wal")
    before = {each.name: each.read_bytes() for each in data_dir.iterdir()}
    with pytest.raises(CannotStart):
        Registry.open(data_dir)
    (data_dir / "passfs.lock").unlink()
    assert {each.name: each.read_bytes() for each in data_dir.iterdir()} == before


def test_a_failed_change_is_reported_and_changes_nothing(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as opened:
        opened.add(record("a"))
        opened._connection.execute("PRAGMA query_only = ON")  # as a failing disk would
        with pytest.raises(RegistryFailed, match="cannot write the registry"):
            opened.add(record("b"))
        with pytest.raises(RegistryFailed, match="cannot write the registry"):
            opened.remove(VolumeName("a"))
        with pytest.raises(RegistryFailed, match="cannot write the registry"):
            opened.write_references(A, {"x": 1})
    assert names(tmp_path) == ["a"]


# Adds, mounts and removes volumes, and reports each change before and after it. Each mounted volume
# has two references, which are added and dropped together.
WRITER = """
import os, sys
from pathlib import Path
from plugin.volumes.registry import Registry
from plugin.volume import MountRecord
from tests.support.tools.records import record

def say(text):
    os.write(1, text.encode())

say("start\\n")
with Registry.open(Path(sys.argv[1])) as registry:
    for number in range(10**6):
        name = f"v{number}"
        say(f"add {name}\\n")
        registry.add(record(name, n="x" * 3000))
        say(f"added {name}\\n")
        say(f"mount {name}\\n")
        mounts = [MountRecord(name, number + 1, 1, "{}")]
        registry.write_references(name, {"x": 1, "y": number + 1}, mounts)
        say(f"mounted {name}\\n")
        if number % 3:
            say(f"remove {name}\\n")
            registry.remove(name)
            say(f"removed {name}\\n")
"""


@pytest.mark.parametrize("seed", range(12))
def test_a_killed_writer_loses_no_change_that_it_reported(tmp_path: Path, seed: int) -> None:
    """Whenever the kill comes, each change is made or not, and the registry is never broken."""
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    said = tmp_path / "said"
    with said.open("wb") as stdout:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=stdout)
        lines = chance.choice([0, 1, 2, 3, 10, 100, 300])
        while said.read_bytes().count(b"\n") <= lines:
            assert writer.poll() is None
        for _ in range(chance.randrange(20_000)):  # a random time
            pass
        writer.send_signal(signal.SIGKILL)
        writer.wait()

    present: set[str] = set()
    mounted: set[str] = set()
    undecided = ""
    for line in said.read_text().splitlines()[1:]:
        change, name = line.split()
        undecided = name if change in {"add", "mount", "remove"} else ""
        if change == "added":
            present.add(name)
        if change == "mounted":
            mounted.add(name)
        if change == "removed":
            present.discard(name)
            mounted.discard(name)
    found = set(names(tmp_path))
    assert found - {undecided} == present - {undecided}
    users, served = in_use(tmp_path)
    assert set(users) == {mount.volume for mount in served}
    assert set(users) - {undecided} == mounted - {undecided}
    assert all(len(count) == 2 for count in users.values())
    assert names(tmp_path) == sorted(found)
