"""check.py: the registry against the disk and the mount table, through the control socket."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from passthrough.linux.syscalls import MNT_DETACH, mount, umount2
from tests.support.fakes.dockerd import Answer, Dockerd, plugin
from tests.support.fakes.hung import HungSource
from tests.support.fakes.worker import command

SERVE = command("serve")


async def check(directory: Path, volume: str = "") -> Answer:
    path = f"/volumes/{volume}/check" if volume else "/check"
    async with Dockerd(directory / "data" / "control.sock").connection() as connection:
        return await connection.request(path, b"", "GET")


async def findings(directory: Path, volume: str = "") -> list[tuple[str, str]]:
    """Return the volume and the problem of each finding; each one has a meaning and a remedy."""
    answer = await check(directory, volume)
    assert answer.status == 200, answer
    found: list[dict[str, Any]] = answer.json["Findings"]
    assert all(each["Meaning"] and each["Remedy"] for each in found)
    return [(each["Volume"], each["Problem"]) for each in found]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    return directory


async def test_a_plugin_without_faults_has_no_finding(tmp_path: Path, source: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="own")
        await dockerd.do("Create", Name="vol", Opts={"source": str(source)})
        await dockerd.do("Mount", Name="vol", ID="a")
        assert await findings(tmp_path) == []
        assert await findings(tmp_path, "vol") == []
        await dockerd.do("Unmount", Name="vol", ID="a")
        assert await findings(tmp_path) == []


async def test_a_volume_without_its_directory(tmp_path: Path, source: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="own")
        await dockerd.do("Create", Name="vol", Opts={"source": str(source)})
        (tmp_path / "data" / "volumes" / "own").rmdir()
        os.rmdir(source)
        (first, problem), (second, other) = await findings(tmp_path)
        assert (first, second) == ("own", "vol")
        assert problem.startswith(f"it cannot be mounted: cannot use {tmp_path}/data/volumes/own")
        assert other.startswith(f"it cannot be mounted: option 'source': '{source}'")
        assert await findings(tmp_path, "vol") == [("vol", other)]


async def test_a_directory_that_is_not_registered(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE):
        directory = tmp_path / "data" / "volumes" / "stray"
        directory.mkdir()
        found = [("stray", f"{directory} belongs to no volume")]
        assert await findings(tmp_path) == found
        assert await findings(tmp_path, "stray") == found
        directory.rmdir()
        answer = await check(tmp_path, "stray")
        assert (answer.status, answer.error) == (404, "no such volume: 'stray'")


async def test_a_name_that_is_not_utf_8_hides_no_other_finding(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE):
        volumes = tmp_path / "data" / "volumes"
        os.mkdir(os.fsencode(volumes) + b"/a\xff")
        (volumes / "stray").mkdir()
        assert await findings(tmp_path) == [
            ("a\\udcff", f"{volumes}/a\\udcff belongs to no volume"),
            ("stray", f"{volumes}/stray belongs to no volume"),
        ]


@pytest.mark.parametrize("registered", [True, False])
async def test_a_mount_without_a_user(tmp_path: Path, *, registered: bool) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        if registered:
            await dockerd.do("Create", Name="vol")
        target = tmp_path / "mounts" / "vol"
        target.mkdir()
        mount(b"none", os.fsencode(target), b"tmpfs", 0, b"")
        ((volume, problem),) = await findings(tmp_path)
        umount2(os.fsencode(target), MNT_DETACH)
        target.rmdir()
        assert volume == "vol"
        assert problem == (
            f"it is mounted at {target}, and no container has a reference"
            if registered
            else f"{target} belongs to no volume (mounted: tmpfs)"
        )


async def test_a_mount_point_that_is_left(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE):
        target = tmp_path / "mounts" / "vol"
        target.mkdir()
        assert await findings(tmp_path) == [
            ("vol", f"{target} belongs to no volume (mounted: nothing)")
        ]


async def test_a_mount_that_another_one_covers(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await dockerd.do("Mount", Name="vol", ID="a")
        target = tmp_path / "mounts" / "vol"
        mount(b"none", os.fsencode(target), b"tmpfs", 0, b"")
        found = await findings(tmp_path)
        umount2(os.fsencode(target), MNT_DETACH)
        assert found == [("vol", f"its mount at {target} is gone, or another one covers it")]
        await dockerd.do("Unmount", Name="vol", ID="a")


@pytest.mark.logs("the volume fails until it is mounted again")
@pytest.mark.logs("its mount is not whole, making a new one")
async def test_references_without_a_mount(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await dockerd.do("Mount", Name="vol", ID="a")
        os.kill((await dockerd.volume("vol"))["Status"]["worker_pid"], signal.SIGKILL)
        with trio.fail_after(10):
            while not (found := await findings(tmp_path)):
                await trio.lowlevel.checkpoint()
        ended = "its worker was killed by SIGKILL"
        assert found == [("vol", f"it has 1 references and no mount: {ended}")]
        await dockerd.do("Mount", Name="vol", ID="b")
        assert await findings(tmp_path) == [
            ("vol", "it has 1 references to a mount that has ended")
        ]
        for mount_id in "ab":
            await dockerd.do("Unmount", Name="vol", ID=mount_id)


async def test_a_detached_mount_that_is_in_use(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await dockerd.do("Mount", Name="vol", ID="a")
        fd = os.open(tmp_path / "mounts" / "vol", os.O_PATH)
        await dockerd.do("Unmount", Name="vol", ID="a")
        assert await findings(tmp_path) == [
            ("vol", "1 of its mounts are detached and still in use")
        ]
        os.close(fd)


@pytest.mark.logs("cannot delete all of .*/trash/token")
async def test_files_that_a_removal_has_left(tmp_path: Path) -> None:
    stuck = tmp_path / "data" / "trash" / "token"
    stuck.mkdir(parents=True)
    mount(b"none", os.fsencode(stuck), b"tmpfs", 0, b"")
    async with plugin(tmp_path, SERVE):
        (tmp_path / "data" / "removed" / "old").mkdir()
        expected = [
            ("", "files of removed volumes could not be deleted"),
            ("old", "the files of the removed volume are not yet in the trash"),
        ]
        with trio.fail_after(10):
            while await findings(tmp_path) != expected:  # the plugin still tries to delete them
                await trio.lowlevel.checkpoint()
    umount2(os.fsencode(stuck), MNT_DETACH)


async def test_a_source_that_hangs(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugin.volumes.check.SOURCE_DEADLINE_S", 0.5)
    (source / "far").mkdir()
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="far", Opts={"source": str(source / "far")})
        with HungSource(source):
            for _ in range(2):
                assert await findings(tmp_path) == [
                    ("far", "it cannot be mounted: its source has not answered within 0.5 s")
                ]
            monkeypatch.setattr("plugin.volumes.check.SOURCES_DEADLINE_S", 0.2)
            assert await findings(tmp_path) == [("far", "its source was not checked")]


async def test_a_data_directory_that_cannot_be_read(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE):
        removed = tmp_path / "data" / "removed"
        removed.rename(tmp_path / "away")
        answer = await check(tmp_path)
        (tmp_path / "away").rename(removed)
        assert answer.status == 500
        assert answer.error.startswith("the data directory cannot be read: ")
