"""`docker volume rm` deletes the directory that the plugin has made, and no other files."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import trio

from plugin.api.server import serve
from plugin.app import composed
from plugin.errors import RegistryFailed
from plugin.volume import VolumeName
from plugin.volumes.registry import Registry
from tests.support.fakes.dockerd import Dockerd, mounted, plugin, settings
from tests.support.tools.mount_specs import in_thread
from tests.support.tools.mounts import bound
from tests.support.tools.processes import kill_all


class Directories(NamedTuple):
    """The directory that the volume serves, and an unrelated one."""

    directory: Path
    files: Path
    precious: Path

    @property
    def options(self) -> dict[str, str]:
        """The options of the volume."""
        is_own = self.files.is_relative_to(self.directory / "data")
        return {} if is_own else {"source": str(self.files)}


@pytest.fixture(params=["own", "source"])
def directories(request: pytest.FixtureRequest, tmp_path: Path) -> Directories:
    own, source = tmp_path / "data" / "volumes" / "vol", tmp_path / "source"
    source.mkdir()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    return Directories(tmp_path, own if request.param == "own" else source, precious)


@asynccontextmanager
async def mounted_volume(directories: Directories) -> AsyncIterator[tuple[Dockerd, Path]]:
    """Run a plugin with the volume mounted and a file in it."""
    async with plugin(directories.directory) as dockerd:
        await dockerd.do("Create", Name="vol", Opts=directories.options)
        target = Path((await dockerd.do("Mount", Name="vol", ID="a"))["Mountpoint"])
        await in_thread((target / "kept").write_text, "kept")
        yield dockerd, target


@asynccontextmanager
async def _restarted(directories: Directories) -> AsyncIterator[Dockerd]:
    async with mounted_volume(directories):
        pass
    async with plugin(directories.directory) as dockerd:
        yield dockerd


@asynccontextmanager
async def _still_mounted(directories: Directories) -> AsyncIterator[Dockerd]:
    async with mounted_volume(directories) as (dockerd, _):
        yield dockerd


@asynccontextmanager
async def _file_open(directories: Directories) -> AsyncIterator[Dockerd]:
    async with mounted_volume(directories) as (dockerd, target):
        fd = await in_thread(os.open, target / "kept", os.O_RDWR)
        yield dockerd
        await in_thread(os.close, fd)


@asynccontextmanager
async def _file_open_after_the_unmount(directories: Directories) -> AsyncIterator[Dockerd]:
    async with mounted_volume(directories) as (dockerd, target):
        fd = await in_thread(os.open, target / "kept", os.O_RDWR)
        await dockerd.do("Unmount", Name="vol", ID="a")
        yield dockerd
        await in_thread(os.close, fd)


@asynccontextmanager
async def _bound_elsewhere(directories: Directories) -> AsyncIterator[Dockerd]:
    """As for a container."""
    async with mounted_volume(directories) as (dockerd, target):
        with bound(target, directories.directory / "container"):
            yield dockerd


@asynccontextmanager
async def _dead_worker(directories: Directories) -> AsyncIterator[Dockerd]:
    async with mounted_volume(directories) as (dockerd, _):
        kill_all((await dockerd.volume("vol"))["Status"]["worker_pid"])
        with trio.fail_after(10):
            while (await dockerd.volume("vol"))["Status"]["mounted"]:
                await trio.lowlevel.checkpoint()
        yield dockerd


@asynccontextmanager
async def _mount_inside(directories: Directories) -> AsyncIterator[Dockerd]:
    async with mounted_volume(directories) as (dockerd, _):
        with bound(directories.precious, directories.files / "inside"):
            yield dockerd


@asynccontextmanager
async def _symlinks(directories: Directories) -> AsyncIterator[Dockerd]:
    async with mounted_volume(directories) as (dockerd, _):
        (directories.files / "directory").symlink_to(directories.precious)
        (directories.files / "file").symlink_to(directories.precious / "file")
        yield dockerd


Situation = Callable[[Directories], AbstractAsyncContextManager[Dockerd]]

# Each situation, and the kinds of volumes that can be removed in it.
SITUATIONS: dict[str, tuple[Situation, set[str]]] = {
    "restarted": (_restarted, {"own", "source"}),
    "still mounted": (_still_mounted, {"own", "source"}),
    "file open": (_file_open, set()),
    "file open after the unmount": (_file_open_after_the_unmount, set()),
    "bound elsewhere": (_bound_elsewhere, set()),
    "dead worker": (_dead_worker, {"own", "source"}),
    "mount inside": (_mount_inside, {"source"}),
    "symlinks": (_symlinks, {"own", "source"}),
}


def marked(situation: str) -> object:
    killed = pytest.mark.logs("volume vol: mount lost: worker [0-9]+ was killed by SIGKILL")
    return pytest.param(situation, marks=[killed] if situation == "dead worker" else [])


@pytest.mark.full
@pytest.mark.parametrize("situation", [marked(one) for one in SITUATIONS])
async def test_remove_deletes_only_files_of_an_unused_volume_without_source(
    directories: Directories, situation: str
) -> None:
    arrange, removable = SITUATIONS[situation]
    is_own = not directories.options
    async with arrange(directories) as dockerd:
        answer = await dockerd.call("Remove", Name="vol")
        is_removed = answer.status == 200
        assert is_removed == (("own" if is_own else "source") in removable), answer
        assert await dockerd.names() == (set() if is_removed else {"vol"})
        assert (directories.precious / "file").read_text() == "precious"
        if is_removed and is_own:
            assert not directories.files.exists()
        else:
            assert (directories.files / "kept").read_text() == "kept"
    async with plugin(directories.directory):  # which empties the trash
        assert (directories.precious / "file").read_text() == "precious"
        assert (directories.files / "kept").exists() == (not is_removed or not is_own)
        assert mounted(directories.directory) == []


@pytest.mark.logs("cannot remove .*/source/mounts/vol: Directory not empty")
@pytest.mark.logs("cannot remove .*/source/mounts/other: Not a directory")
async def test_a_source_above_the_mount_directory_keeps_its_files(tmp_path: Path) -> None:
    """Create refuses such a source; but the mount directory may be set to one inside it later."""
    source = tmp_path / "source"
    (source / "mounts" / "vol").mkdir(parents=True)
    (source / "mounts" / "vol" / "file").write_text("theirs")
    (source / "mounts" / "other").write_text("theirs")
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol", Opts={"source": str(source)})
    inside = msgspec.structs.replace(settings(tmp_path), mount_dir=source / "mounts")
    stop = trio.Event()
    async with composed(inside) as (driver, _, listener), trio.open_nursery() as nursery:
        nursery.start_soon(serve, driver, listener, stop.wait)
        dockerd = Dockerd(inside.socket)
        refused = await dockerd.call("Create", Name="vol2", Opts={"source": str(source)})
        assert "contains" in refused.error
        await dockerd.do("Remove", Name="vol")
        stop.set()
    assert (source / "mounts" / "vol" / "file").read_text() == "theirs"
    assert (source / "mounts" / "other").read_text() == "theirs"


async def test_a_refusal_escapes_the_name_of_a_mount_inside(tmp_path: Path) -> None:
    own, other = tmp_path / "data" / "volumes" / "vol", tmp_path / "other"
    other.mkdir()
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol")
        with bound(other, own / "inner\udcff"):
            refused = await dockerd.call("Remove", Name="vol")
        assert refused.status == 409
        assert r"vol/inner\udcff is a mount point inside it" in refused.error
        await dockerd.do("Remove", Name="vol")


# A Remove that is interrupted.


@pytest.mark.logs("volume vol: its removal was interrupted, and has been undone")
async def test_an_interrupted_removal_is_undone(tmp_path: Path) -> None:
    """As if killed after the files were moved away, while the registry still had the volume."""
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol")
    data = tmp_path / "data"
    (data / "volumes" / "vol" / "file").write_text("kept")
    (data / "volumes" / "vol").rename(data / "removed" / "vol")
    (data / "trash" / "0123456789abcdef").mkdir()
    async with plugin(tmp_path) as dockerd:
        assert (data / "volumes" / "vol" / "file").read_text() == "kept"
        await dockerd.do("Mount", Name="vol", ID="a")
        await dockerd.do("Unmount", Name="vol", ID="a")
        await dockerd.do("Remove", Name="vol")
        assert not (data / "volumes" / "vol").exists()
    assert list((data / "removed").iterdir()) == []


async def test_a_removal_interrupted_after_the_registry_is_finished(tmp_path: Path) -> None:
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol")
    data = tmp_path / "data"
    (data / "volumes" / "vol").rename(data / "removed" / "vol")
    with Registry.open(data) as registry:
        registry.remove(VolumeName("vol"))
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol")
        assert list((data / "removed").iterdir()) == []
        await dockerd.do("Remove", Name="vol")


async def test_files_are_restored_if_the_registry_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        assert (tmp_path / "data" / "removed" / "vol" / "file").exists()
        raise RegistryFailed("the disk is full")

    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol")
        file = tmp_path / "data" / "volumes" / "vol" / "file"
        file.touch()
        monkeypatch.setattr(Registry, "remove", fail)
        assert (await dockerd.call("Remove", Name="vol")).error == "the disk is full"
        assert file.exists()
