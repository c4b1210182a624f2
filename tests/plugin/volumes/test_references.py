"""References to a volume: the counts by mount id, on disk, and the kernel's knowledge of use."""

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

pytestmark = pytest.mark.full

SERVE = command("serve")
ENDED = "the plugin ended while the volume was mounted; "


async def in_use(directory: Path, *mount_ids: str) -> None:
    """Run a plugin that ends while its volume is mounted for *mount_ids*."""
    async with plugin(directory, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        for mount_id in mount_ids:
            await dockerd.do("Mount", Name="vol", ID=mount_id)


async def state(dockerd: Dockerd) -> tuple[bool, int, str]:
    """Return whether the volume is mounted, the count of references, and the error."""
    status = (await dockerd.volume("vol"))["Status"]
    return status["mounted"], status["references"], status.get("error", "")


# After a restart.


async def test_status_reports_a_mount_lost_in_a_restart_until_the_last_unmount(
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


async def test_an_unmount_of_an_id_from_before_a_restart_keeps_the_new_mount(
    tmp_path: Path,
) -> None:
    await in_use(tmp_path, "old")
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Mount", Name="vol", ID="new")
        assert await state(dockerd) == (True, 1, "")
        await dockerd.do("Unmount", Name="vol", ID="old")
        assert mounted(tmp_path) == ["vol"]
        await dockerd.do("Unmount", Name="vol", ID="new")
        assert mounted(tmp_path) == []


async def test_an_id_that_mounts_again_after_a_restart_has_one_reference(tmp_path: Path) -> None:
    """An engine that was killed mounts with the same ids, and sends one Unmount for each."""
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


async def test_a_reboot_drops_all_references(tmp_path: Path) -> None:
    await in_use(tmp_path, "a")
    with closing(sqlite3.connect(tmp_path / "data" / FILE_NAME)) as registry, registry:
        registry.execute("UPDATE boot SET id = 'that of an earlier boot'")
    async with plugin(tmp_path, SERVE) as dockerd:
        assert await state(dockerd) == (False, 0, "")


# A registry that cannot be written.


def _fail(*_: object) -> None:
    raise RegistryFailed("the disk is full")


@pytest.mark.logs("volume vol: cannot be mounted: the disk is full")
async def test_a_mount_that_cannot_be_recorded_is_unmounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "write_references", _fail)
            refused = await dockerd.call("Mount", Name="vol", ID="a")
        assert (refused.status, refused.error) == (500, "the disk is full")
        assert await state(dockerd) == (False, 0, "the disk is full")
        assert mounted(tmp_path) == []

        await dockerd.do("Mount", Name="vol", ID="a")
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "write_references", _fail)
            assert (await dockerd.call("Mount", Name="vol", ID="b")).status == 500
        assert await state(dockerd) == (True, 1, "the disk is full")
        assert mounted(tmp_path) == ["vol"]
    async with plugin(tmp_path, SERVE) as dockerd:
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "write_references", _fail)
            assert (await dockerd.call("Mount", Name="vol", ID="b")).status == 500
        assert await state(dockerd) == (False, 1, "the disk is full")
        assert mounted(tmp_path) == []


async def kill(dockerd: Dockerd, worker: int) -> None:
    """Kill the worker of `vol`, and wait until the plugin has noticed."""
    os.kill(worker, signal.SIGKILL)
    while (await dockerd.volume("vol"))["Status"]["worker_pid"]:
        await trio.lowlevel.checkpoint()


@pytest.mark.logs("volume vol: mount lost: worker [0-9]+ was killed by SIGKILL")
async def test_a_worker_s_death_while_the_registry_is_written_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        died = threading.Event()

        def record_when_it_is_dead(registry: Registry, *given: Any) -> None:
            died.wait()
            record(registry, *given)

        record = Registry.write_references
        monkeypatch.setattr(Registry, "write_references", record_when_it_is_dead)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(dockerd.do, "Mount", Name="vol", ID="a"))
            while not (pid := (await dockerd.volume("vol"))["Status"]["worker_pid"]):
                await trio.lowlevel.checkpoint()
            await kill(dockerd, pid)
            died.set()
        assert await state(dockerd) == (False, 1, "its worker was killed by SIGKILL")


@pytest.mark.logs("volume vol: mount lost: worker [0-9]+ was killed by SIGKILL")
@pytest.mark.logs("volume vol: its mount is not whole, making a new one")
async def test_a_worker_s_death_while_an_unmount_is_written_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other users have lost their mount."""
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        for user in ("a", "b"):
            await dockerd.do("Mount", Name="vol", ID=user)
        began, died = threading.Event(), threading.Event()

        def record_when_it_is_dead(registry: Registry, *given: Any) -> None:
            began.set()
            died.wait()
            record(registry, *given)

        record = Registry.write_references
        async with trio.open_nursery() as nursery:
            pid = (await dockerd.volume("vol"))["Status"]["worker_pid"]
            with monkeypatch.context() as patch:
                patch.setattr(Registry, "write_references", record_when_it_is_dead)
                nursery.start_soon(partial(dockerd.do, "Unmount", Name="vol", ID="a"))
                await trio.to_thread.run_sync(began.wait)
                await kill(dockerd, pid)
                died.set()
        await dockerd.do("Mount", Name="vol", ID="c")
        status = (await dockerd.volume("vol"))["Status"]
        assert status["references"] == 2
        assert status["dead_references"].startswith("1: the worker of their mount has ended")
        for user in ("b", "c"):
            await dockerd.do("Unmount", Name="vol", ID=user)


@pytest.mark.logs("volume vol: mount lost: worker [0-9]+ was killed by SIGKILL")
@pytest.mark.logs("volume vol: its mount is not whole, making a new one")
@pytest.mark.logs("volume vol: cannot be mounted: the disk is full")
async def test_a_mount_in_place_of_a_lost_one_that_cannot_be_recorded_is_unmounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await dockerd.do("Mount", Name="vol", ID="a")
        await kill(dockerd, (await dockerd.volume("vol"))["Status"]["worker_pid"])
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "write_references", _fail)
            assert (await dockerd.call("Mount", Name="vol", ID="b")).status == 500
        assert await state(dockerd) == (False, 1, "the disk is full")
        assert mounted(tmp_path) == []


async def test_an_unmount_that_cannot_be_recorded_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await dockerd.do("Mount", Name="vol", ID="a")
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "write_references", _fail)
            assert (await dockerd.call("Unmount", Name="vol", ID="a")).error == "the disk is full"
        assert await state(dockerd) == (True, 1, "")
        await dockerd.do("Unmount", Name="vol", ID="a")
        assert mounted(tmp_path) == []


# Remove, which asks the kernel and not the counts.


async def test_a_volume_with_references_but_not_in_use_is_removed(tmp_path: Path) -> None:
    """An engine that was killed sends no Unmount, so the references would last for ever."""
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol")
        for mount_id in ("a", "a", "b"):
            await dockerd.do("Mount", Name="vol", ID=mount_id)
        await dockerd.do("Remove", Name="vol")
        assert await dockerd.names() == set()
        assert mounted(tmp_path) == []
        await dockerd.do("Create", Name="vol")
        assert await state(dockerd) == (False, 0, "")


async def test_a_failed_removal_of_a_volume_not_in_use_drops_its_references(tmp_path: Path) -> None:
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


async def test_a_volume_in_use_is_not_removed(tmp_path: Path) -> None:
    """With and without a reference; the open file keeps working."""
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
            error = "it was unmounted to be removed, but is in use" if count else ""
            assert await state(dockerd) == (False, count, error)
            await in_thread(os.write, fd, b"x")
            await dockerd.do("Unmount", Name="vol", ID="a")
        assert file.read_bytes() == b"xx"

        await dockerd.do("Mount", Name="vol", ID="a")
        assert await in_thread((target / "file").read_text) == "xx"
        await dockerd.do("Unmount", Name="vol", ID="a")
        await in_thread(os.close, fd)
        await dockerd.do("Remove", Name="vol")
        assert not file.exists()


async def test_a_volume_can_be_mounted_after_a_refused_remove(tmp_path: Path) -> None:
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
