"""old_names.py: volumes of a passfs that accepted any text as a name go on working."""

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from plugin.volumes import registry, schema
from plugin.volumes.old_names import directory_of
from tests.support.fakes.dockerd import mounted, plugin
from tests.support.fakes.service_manager import ServiceManager
from tests.support.fakes.worker import command
from tests.support.tools.mount_specs import in_thread
from tests.support.tools.service import started

pytestmark = pytest.mark.full

SERVE = command("serve")

# Names that an older passfs accepted, and the directories that it made for them.
NAMES = {
    "a": "a",
    "7": "7",
    "b": "b",
    "my-data_1.old": "my-data_1.old",
    "A" * 128: "A" * 128,
    ".": "@.",
    "..": "@..",
    "a/b": "@a%2Fb",
    "a/../b": "@a%2F..%2Fb",
    "/abs": "@%2Fabs",
    "-v": "@-v",
    " a": "@%20a",
    "a:b": "@a%3Ab",
    "a\n": "@a%0A",
    "@a": "@%40a",
    "%2F": "@%252F",
    "\u00e4": "@%C3%A4",
    "A" * 129: "@" + "A" * 129,
    "x" * 300: "#0d4e2ca9e9cbced7a7a5380eb29e1a3783b9b6d0db72de36a1051038e1c1fbc7",
}
ENCODED = [name for name, directory in NAMES.items() if name != directory]

# The statements of a passfs of format 2, word for word.
FORMAT_2 = """
    CREATE TABLE volumes (
        name TEXT PRIMARY KEY, options TEXT NOT NULL, created_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE boot (id TEXT NOT NULL) STRICT;
    CREATE TABLE refs (
        volume TEXT NOT NULL REFERENCES volumes ON DELETE CASCADE,
        id TEXT NOT NULL,
        count INTEGER NOT NULL CHECK (count > 0),
        PRIMARY KEY (volume, id)
    ) STRICT;
    CREATE TABLE served (
        number INTEGER PRIMARY KEY,
        volume TEXT NOT NULL REFERENCES volumes ON DELETE CASCADE,
        device INTEGER NOT NULL,
        report TEXT NOT NULL
    ) STRICT;
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Make a data directory of format 2, with a file in each volume's directory."""
    directory = tmp_path / "data"
    (directory / "volumes").mkdir(parents=True)
    with closing(sqlite3.connect(directory / registry.FILE_NAME)) as connection, connection:
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 2")
        connection.executescript(FORMAT_2)
        for name, place in NAMES.items():
            values = (name, "{}", "2026-01-02T03:04:05+00:00")
            connection.execute("INSERT INTO volumes VALUES (?, ?, ?)", values)
            (directory / "volumes" / place).mkdir()
            (directory / "volumes" / place / "file").write_text(name)
        source = json.dumps({"source": str(tmp_path)})
        values = ("a source", source, "2026-01-02T03:04:05+00:00")
        connection.execute("INSERT INTO volumes VALUES (?, ?, ?)", values)
    return directory


@pytest.mark.parametrize("name", NAMES)
def test_an_older_volume_keeps_its_directory(name: str) -> None:
    assert directory_of(name) == NAMES[name]


@given(names=st.lists(st.text(st.sampled_from("ab/.@#%2F\n\u00e4-"), min_size=1), unique=True))
def test_no_two_names_share_a_directory(names: list[str]) -> None:
    assert len({directory_of(name) for name in names}) == len(names)


def test_the_upgraded_registry_has_the_name_of_each_directory(data: Path) -> None:
    for _ in "12":
        with registry.Registry.open(data) as opened:
            directories = {each.name: each.directory for each in opened.records}
        assert directories == NAMES | {"a source": "@a%20source"}


async def test_volumes_of_any_older_name_can_be_mounted_and_removed(
    tmp_path: Path, data: Path
) -> None:
    async with plugin(tmp_path) as dockerd:
        assert await dockerd.names() == {*NAMES, "a source"}
        for name, place in NAMES.items():
            target = Path((await dockerd.do("Mount", Name=name, ID="i"))["Mountpoint"])
            assert target == tmp_path / "mounts" / place
            assert (await dockerd.do("Path", Name=name))["Mountpoint"] == str(target)
        assert mounted(tmp_path) == sorted(NAMES.values())
        odd = tmp_path / "mounts" / NAMES["a/../b"] / "file"
        assert await in_thread(odd.read_text) == "a/../b"
        await dockerd.do("Unmount", Name="a/../b", ID="i")
        await dockerd.do("Create", Name="a/../b")  # it exists
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Remove", Name="a/../b")
        assert (await dockerd.volume("b"))["Name"] == "b"
        assert (data / "volumes" / "b" / "file").read_text() == "b"
        for name in NAMES.keys() - {"a/../b"} | {"a source"}:
            assert (await dockerd.volume(name))["Name"] == name
            await dockerd.do("Remove", Name=name)
        for name in ENCODED:
            if name != "A" * 129:
                assert (await dockerd.call("Create", Name=name)).status == 400
        await dockerd.do("Create", Name="A" * 129)
    assert [path.name for path in (data / "volumes").iterdir()] == ["A" * 129]


@pytest.mark.logs(r"volume a/../b: its removal was interrupted, and has been undone")
async def test_an_interrupted_removal_of_an_older_passfs_is_undone(
    tmp_path: Path, data: Path
) -> None:
    (data / "removed").mkdir()
    (data / "volumes" / "@a%2F..%2Fb").rename(data / "removed" / "@a%2F..%2Fb")
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Remove", Name=" a")
        assert (data / "volumes" / "@a%2F..%2Fb" / "file").read_text() == "a/../b"


@pytest.mark.usefixtures("data")
def test_mounts_of_any_older_name_are_taken_over(tmp_path: Path) -> None:
    with ServiceManager(tmp_path) as manager, started(tmp_path, manager) as service:
        target = Path(service.call("VolumeDriver.Mount", Name="a/../b", ID="i")["Mountpoint"])
        with (target / "file").open() as user:
            assert service.end(signal.SIGTERM)[0] == 0
            service.start()
            status = service.call("VolumeDriver.Get", Name="a/../b")["Volume"]["Status"]
            assert status["mounted"]
            assert user.read() == "a/../b"
        service.call("VolumeDriver.Unmount", Name="a/../b", ID="i")
        assert service.mounted() == []
