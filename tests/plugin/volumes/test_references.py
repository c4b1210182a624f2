"""Who uses a volume: as counted for each mount id, on disk, and as the kernel knows it."""

import os
import signal
import sqlite3
import threading
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from plugin.errors import RegistryFailed
from plugin.volumes.registry import FILE_NAME, Registry
from tests.support.fakes.dockerd import Dockerd, mounted, plugin
from tests.support.fakes.worker import command
from tests.support.tools.mount_specs import in_thread
from tests.support.tools.mounts import bound

SERVE = command("serve")
ENDED = "the plugin ended while the volume was mounted; "


async def in_use(directory: Path, *mount_ids: str) -> None:
    """Have a plugin end while its volume `v` is mounted for *mount_ids*."""
    async with plugin(directory, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        for mount_id in mount_ids:
            await dockerd.do("Mount", Name="vol", ID=mount_id)


async def state(dockerd: Dockerd) -> tuple[bool, int, str]:
    """Whether `v` is mounted, how many users are counted, and what is wrong."""
    status = (await dockerd.volume("vol"))["Status"]
    return status["mounted"], status["references"], status.get("error", "")


# After a restart.


async def test_a_restart_that_has_cost_a_mount_is_told_until_its_users_have_gone(
    tmp_path: Path,
) -> None:
    await in_use(tmp_path, "a", "a", "b")
    for _ in "12":
        async with plugin(tmp_path, SERVE) as dockerd:
            is_mounted, count, error = await state(dockerd)
            assert (is_mounted, count) == (False, 3)
            assert error.startswith(ENDED)
            assert (await dockerd.do("Path", Name="vol"))["Mountpoint"] == ""
            assert mounted(tmp_path) == []
    async with plugin(tmp_path, SERVE) as dockerd:
        for mount_id, left in (("x", 3), ("a", 2), ("b", 1), ("b", 1)):
            await dockerd.do("Unmount", Name="vol", ID=mount_id)
            assert (await state(dockerd))[:2] == (False, left)
    async with plugin(tmp_path, SERVE) as dockerd:
        assert (await state(dockerd))[:2] == (False, 1)
        await dockerd.do("Unmount", Name="vol", ID="a")
        assert await state(dockerd) == (False, 0, "")
        assert (await dockerd.do("Path", Name="vol"))["Mountpoint"] == ""


async def test_an_id_from_before_a_restart_takes_nobody_s_mount_down(tmp_path: Path) -> None:
    await in_use(tmp_path, "old")
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Mount", Name="vol", ID="new")
        assert await state(dockerd) == (True, 1, "")
        await dockerd.do("Unmount", Name="vol", ID="old")
        assert mounted(tmp_path) == ["vol"]
        await dockerd.do("Unmount", Name="vol", ID="new")
        assert mounted(tmp_path) == []


async def test_an_id_that_comes_again_after_a_restart_is_counted_once(tmp_path: Path) -> None:
    """An engine that was killed mounts with the ids that it had, and gives each back once."""
    await in_use(tmp_path, "same", "same", "other")
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Mount", Name="vol", ID="same")
        assert await dockerd.references("vol") == 1
        await dockerd.do("Mount", Name="vol", ID="same")
        await dockerd.do("Unmount", Name="vol", ID="same")
        assert mounted(tmp_path) == ["vol"]
        await dockerd.do("Unmount", Name="vol", ID="same")
        assert mounted(tmp_path) == []
    async with plugin(tmp_path, SERVE) as dockerd:
        assert await state(dockerd) == (False, 0, "")


async def test_nobody_uses_a_volume_after_a_reboot(tmp_path: Path) -> None:
    await in_use(tmp_path, "a")
    with closing(sqlite3.connect(tmp_path / "data" / FILE_NAME)) as registry, registry:
        registry.execute("UPDATE boot SET id = 'that of an earlier run of the machine'")
    async with plugin(tmp_path, SERVE) as dockerd:
        assert await state(dockerd) == (False, 0, "")


# What cannot be written.


def _fail(*_: object) -> None:
    raise RegistryFailed("the disk is full")


@pytest.mark.logs("volume vol: cannot be mounted: the disk is full")
async def test_a_mount_that_cannot_be_recorded_is_taken_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "use", _fail)
            refused = await dockerd.call("Mount", Name="vol", ID="a")
        assert (refused.status, refused.error) == (500, "the disk is full")
        assert await state(dockerd) == (False, 0, "the disk is full")
        assert mounted(tmp_path) == []

        await dockerd.do("Mount", Name="vol", ID="a")
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "use", _fail)
            assert (await dockerd.call("Mount", Name="vol", ID="b")).status == 500
        assert await state(dockerd) == (True, 1, "the disk is full")
        assert mounted(tmp_path) == ["vol"]
    async with plugin(tmp_path, SERVE) as dockerd:
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "use", _fail)
            assert (await dockerd.call("Mount", Name="vol", ID="b")).status == 500
        assert await state(dockerd) == (False, 1, "the disk is full")
        assert mounted(tmp_path) == []


@pytest.mark.logs("volume vol: worker [0-9]+ was killed by SIGKILL")
async def test_a_worker_that_dies_while_its_mount_is_recorded_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        died = threading.Event()

        def record_when_it_is_dead(registry: Registry, *given: Any) -> None:
            died.wait()
            record(registry, *given)

        record = Registry.use
        monkeypatch.setattr(Registry, "use", record_when_it_is_dead)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(dockerd.do, "Mount", Name="vol", ID="a"))
            while not (pid := (await dockerd.volume("vol"))["Status"]["worker_pid"]):
                await trio.lowlevel.checkpoint()
            os.kill(pid, signal.SIGKILL)
            while (await dockerd.volume("vol"))["Status"]["worker_pid"]:
                await trio.lowlevel.checkpoint()
            died.set()
        assert await state(dockerd) == (False, 1, "its worker was killed by SIGKILL")


async def test_an_unmount_that_cannot_be_recorded_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await dockerd.do("Mount", Name="vol", ID="a")
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "use", _fail)
            assert (await dockerd.call("Unmount", Name="vol", ID="a")).error == "the disk is full"
        assert await state(dockerd) == (True, 1, "")
        await dockerd.do("Unmount", Name="vol", ID="a")
        assert mounted(tmp_path) == []


# Remove: the counts may be wrong, the kernel is not.


async def test_a_volume_that_is_counted_and_not_used_is_removed(tmp_path: Path) -> None:
    """An engine that was killed never gives back what it had; it would be "in use" for ever."""
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol")
        for mount_id in ("a", "a", "b"):
            await dockerd.do("Mount", Name="vol", ID=mount_id)
        await dockerd.do("Remove", Name="vol")
        assert await dockerd.names() == set()
        assert mounted(tmp_path) == []
        await dockerd.do("Create", Name="vol")
        assert await state(dockerd) == (False, 0, "")


async def test_a_count_that_was_wrong_is_so_no_more_when_the_removal_fails(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await dockerd.do("Mount", Name="vol", ID="a")
        with bound(tmp_path, tmp_path / "data" / "volumes" / "vol" / "inside"):
            refused = await dockerd.call("Remove", Name="vol")
            assert "/data/volumes/vol/inside is a mount point inside it" in refused.error
        assert await state(dockerd) == (False, 0, "")
    async with plugin(tmp_path, SERVE) as dockerd:
        assert await state(dockerd) == (False, 0, "")
        await dockerd.do("Remove", Name="vol")


async def test_a_volume_that_is_used_is_not_removed(tmp_path: Path) -> None:
    """Whether or not it is counted; and who uses it goes on doing so."""
    file = tmp_path / "data" / "volumes" / "vol" / "file"
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol")
        target = Path((await dockerd.do("Mount", Name="vol", ID="a"))["Mountpoint"])
        fd = await in_thread(os.open, target / "file", os.O_CREAT | os.O_RDWR)
        for count in (1, 0):
            refused = await dockerd.call("Remove", Name="vol")
            assert refused.status == 409
            assert refused.error.startswith("volume 'vol' cannot be removed: its files are in use")
            assert f"(references: {count})" in refused.error
            told = "it was unmounted to be removed, but is in use" if count else ""
            assert await state(dockerd) == (False, count, told)
            await in_thread(os.write, fd, b"x")
            await dockerd.do("Unmount", Name="vol", ID="a")
        assert file.read_bytes() == b"xx"

        await dockerd.do("Mount", Name="vol", ID="a")
        assert await in_thread((target / "file").read_text) == "xx"
        await dockerd.do("Unmount", Name="vol", ID="a")
        await in_thread(os.close, fd)
        await dockerd.do("Remove", Name="vol")
        assert not file.exists()


async def test_a_volume_can_be_used_after_a_remove_that_was_refused(tmp_path: Path) -> None:
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol")
        target = Path((await dockerd.do("Mount", Name="vol", ID="a"))["Mountpoint"])
        fd = await in_thread(os.open, target / "file", os.O_CREAT | os.O_RDWR)
        assert (await dockerd.call("Remove", Name="vol")).status == 409
        assert mounted(tmp_path) == []
        _, count, error = await state(dockerd)
        assert (count, error) == (1, "it was unmounted to be removed, but is in use")

        await dockerd.do("Mount", Name="vol", ID="b")
        assert await state(dockerd) == (True, 2, "")
        assert await in_thread(os.listdir, target) == ["file"]
        for mount_id in "ab":
            assert mounted(tmp_path) == ["vol"]
            await dockerd.do("Unmount", Name="vol", ID=mount_id)
        assert mounted(tmp_path) == []
        await in_thread(os.close, fd)
