"""plugin/registry.py: durable, whole after any crash, and refused rather than misread."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from plugin import registry
from plugin.errors import CannotStart, RegistryFailed
from plugin.registry import Registry
from plugin.volume import Record, VolumeName


def record(name: str, **options: str) -> Record:
    return Record(name=VolumeName(name), options=options, created_at=datetime.now(UTC))


def names(data_dir: Path) -> list[str]:
    with Registry.open(data_dir) as opened:
        return [each.name for each in opened.records]


def test_a_first_registry_is_empty(tmp_path: Path) -> None:
    assert names(tmp_path) == []


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    paris = timezone(timedelta(hours=1))
    records = [
        Record(
            name=VolumeName("a"),
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


def test_a_name_is_there_once(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as opened:
        opened.add(record("a", cache="never"))
        with pytest.raises(RegistryFailed, match=r"cannot write the registry .*passfs\.db: UNIQUE"):
            opened.add(record("a"))
    with Registry.open(tmp_path) as opened:
        assert opened.records[0].options == {"cache": "never"}


def test_one_plugin_at_a_time_uses_a_data_directory(tmp_path: Path) -> None:
    refused = pytest.raises(CannotStart, match="another passfs uses the data directory")
    with Registry.open(tmp_path), refused:
        Registry.open(tmp_path)
    assert names(tmp_path) == []


def test_commits_are_synced(tmp_path: Path) -> None:
    """Not even a power cut takes back what has been answered: 3 is EXTRA."""
    with Registry.open(tmp_path) as opened:
        assert opened._connection.execute("PRAGMA synchronous").fetchone() == (3,)
        assert opened._connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


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
        lambda path: _rewrite(path, "PRAGMA user_version = 2"),
        r"it was written by a newer passfs \(format 2, this one knows 1\)",
    ),
    "no format": (lambda path: _rewrite(path, "PRAGMA user_version = 0"), "its format is 0"),
    "truncated": (lambda path: os.truncate(path, 5000), "it is damaged: "),
    "overwritten": (_damage_pages, "it is damaged: "),
    "no table": (lambda path: _rewrite(path, "DROP TABLE volumes"), "it is damaged: no such table"),
    "options": (
        lambda path: _rewrite(path, "UPDATE volumes SET options = '[1]'"),
        "it is damaged: Expected `object`",
    ),
    "name": (
        lambda path: _rewrite(path, "UPDATE volumes SET name = '../x'"),
        "it is damaged: the volume name '../x'",
    ),
    "time": (
        lambda path: _rewrite(path, "UPDATE volumes SET created_at = '2026-01-01T00:00:00'"),
        "it is damaged: the time '2026-01-01T00:00:00', which has no zone",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_read_is_refused_and_left_alone(tmp_path: Path, damage: str) -> None:
    with Registry.open(tmp_path) as opened:
        opened.add(record("a"))
    path = tmp_path / registry.FILE_NAME
    inflict, sentence = DAMAGES[damage]
    inflict(path)
    before = path.read_bytes()

    with pytest.raises(CannotStart, match=sentence) as refusal:
        Registry.open(tmp_path)
    assert f"cannot use the registry {path}: " in str(refusal.value)
    assert "it has been left as it is" in str(refusal.value)
    assert path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"passfs.db", "passfs.lock"}


def test_a_foreign_database_with_a_log_beside_it_is_not_touched(tmp_path: Path) -> None:
    """SQLite would fold a -wal file into the database on opening it; we do not let it."""
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
        opened._connection.execute("PRAGMA query_only = ON")  # as a disk that fails would
        with pytest.raises(RegistryFailed, match="cannot write the registry"):
            opened.add(record("b"))
        with pytest.raises(RegistryFailed, match="cannot write the registry"):
            opened.remove(VolumeName("a"))
    assert names(tmp_path) == ["a"]


# Adds and removes volumes, and says of each change that it is about to be made and that it is made.
WRITER = """
import os, sys
from datetime import datetime, UTC
from pathlib import Path
from plugin.registry import Registry
from plugin.volume import Record

def say(text):
    os.write(1, text.encode())

say("start\\n")
with Registry.open(Path(sys.argv[1])) as registry:
    for number in range(10**6):
        name = f"v{number}"
        say(f"add {name}\\n")
        registry.add(Record(name=name, options={"n": "x" * 3000}, created_at=datetime.now(UTC)))
        say(f"added {name}\\n")
        if number % 3:
            say(f"remove {name}\\n")
            registry.remove(name)
            say(f"removed {name}\\n")
"""


@pytest.mark.parametrize("seed", range(12))
def test_a_killed_writer_loses_nothing_that_it_has_answered(tmp_path: Path, seed: int) -> None:
    """Old or new after each change, never broken: whatever instant the kill comes at."""
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    said = tmp_path / "said"
    with said.open("wb") as stdout:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=stdout)
        lines = chance.choice([0, 1, 2, 3, 10, 100, 300])
        while said.read_bytes().count(b"\n") <= lines:
            assert writer.poll() is None
        for _ in range(chance.randrange(20_000)):  # some instants further
            pass
        writer.send_signal(signal.SIGKILL)
        writer.wait()

    present: set[str] = set()
    undecided = ""
    for line in said.read_text().splitlines()[1:]:
        change, name = line.split()
        undecided = name if change in {"add", "remove"} else ""
        if change == "added":
            present.add(name)
        if change == "removed":
            present.discard(name)
    found = set(names(tmp_path))
    assert found - {undecided} == present - {undecided}
    assert names(tmp_path) == sorted(found)
