"""The managed plugin in a real engine: its settings, its upgrade, and its view of the host."""

import contextlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import docker.errors
import pytest

from plugin.commands.connection import Connection
from plugin.install.installation import TREE
from plugin.install.installer import BUILD, build_stamp
from plugin.install.plugin_settings import environment, mount_sources
from plugin.install.source_tree import read_manifest
from tests.support.tools.driver import TOOLS_IMAGE, Driver, execute
from tests.support.tools.image_registry import registry
from tests.support.tools.mounts import forget
from tests.support.tools.own_engine import OwnEngine
from tests.support.tools.processes import wait_until


@pytest.fixture
def driver(engine: OwnEngine, own_managed: Driver) -> Driver:
    """Provide the managed plugin in an engine of its own."""
    if engine.live_restore:
        engine.restart()
    return own_managed


@contextlib.contextmanager
def _set(engine: OwnEngine, driver: Driver, **wanted: str) -> Iterator[None]:
    """Change settings of the plugin, as an administrator does, for the length of a block."""
    inspected = engine.client.api.inspect_plugin(driver.name)
    before = mount_sources(inspected) | environment(inspected)
    _while_disabled(engine, driver, wanted)
    try:
        yield
    finally:
        _while_disabled(engine, driver, {name: before[name] for name in wanted})


def _while_disabled(engine: OwnEngine, driver: Driver, wanted: Mapping[str, str]) -> None:
    engine.docker("plugin", "disable", "--force", driver.name)
    engine.docker("plugin", "set", driver.name, *(f"{k}={v}" for k, v in wanted.items()))
    engine.docker("plugin", "enable", driver.name)


def _logs_requests(engine: OwnEngine, driver: Driver, _: Path) -> None:
    with driver.volume() as volume:
        line = f"/VolumeDriver.Create {volume.name}"
        wait_until(lambda: line in engine.log.read_text())


def _logs_objects(engine: OwnEngine, driver: Driver, _: Path) -> None:
    with driver.volume() as volume:
        line = rf"\"volume\": \"{volume.name}\""
        wait_until(lambda: line in engine.log.read_text())


def _answers_on_the_host(_: OwnEngine, __: Driver, directory: Path) -> None:
    """The plugin's data directory is `data` on the host."""
    with contextlib.closing(
        Connection(str(directory / "data" / "metrics.sock"), 10.0)
    ) as connection:
        connection.request("GET", "/metrics")
        assert b"passfs_volume" in connection.getresponse().read()


def _sees_one_directory(engine: OwnEngine, driver: Driver, directory: Path) -> None:
    source = directory / "host" / "source"
    with driver.volume(source=str(source)) as volume:
        driver.run(volume, "echo seen > /data/file")
    assert (source / "file").read_text() == "seen\n"
    with pytest.raises(docker.errors.APIError, match=r"'/etc' (does not lie|lies in none)"):
        engine.client.volumes.create("outside", driver=driver.name, driver_opts={"source": "/etc"})


def _keeps_data_there(_: OwnEngine, driver: Driver, directory: Path) -> None:
    with driver.volume() as volume:
        driver.run(volume, "echo there > /data/file")
        file = directory / "data" / "volumes" / str(volume.name) / "file"
        assert file.read_text() == "there\n"


def _allows_one_directory(engine: OwnEngine, driver: Driver, directory: Path) -> None:
    refused = directory / "host" / "refused"
    refused.mkdir()
    with pytest.raises(docker.errors.APIError, match="administrator"):
        engine.client.volumes.create(
            "refused", driver=driver.name, driver_opts={"source": str(refused)}
        )


def _has_defaults(_: OwnEngine, driver: Driver, __: Path) -> None:
    with driver.volume() as volume:
        assert driver.status(volume)["options"]["cache"] == "never"


def _forbids_options(engine: OwnEngine, driver: Driver, _: Path) -> None:
    with pytest.raises(docker.errors.APIError, match="administrator"):
        engine.client.volumes.create("forbidden", driver=driver.name, driver_opts={"dev": "true"})


class Setting(NamedTuple):
    """A value for a setting, and a check that the plugin uses it."""

    value: str
    """`{}` stands for a directory of the test's."""
    check: Callable[[OwnEngine, Driver, Path], None]


def _gives_directories(_: OwnEngine, driver: Driver, directory: Path) -> None:
    with driver.volume() as volume:
        status = (directory / "data" / "volumes" / str(volume.name)).stat()
        assert (status.st_uid, status.st_gid) == (1234, 1235)


SETTINGS: Mapping[str, Setting] = {
    "PASSFS_LOG_LEVEL": Setting("debug", _logs_requests),
    "PASSFS_LOG_FORMAT": Setting("json", _logs_objects),
    "PASSFS_METRICS": Setting("/var/lib/passfs/metrics.sock", _answers_on_the_host),
    "PASSFS_HOST_DIR": Setting("{}/host", _sees_one_directory),
    "PASSFS_ALLOWED_SOURCES": Setting("{}/host/source", _allows_one_directory),
    "PASSFS_DEFAULT_OPTIONS": Setting("cache=never,readonly=false", _has_defaults),
    "PASSFS_FORBIDDEN_OPTIONS": Setting("suid,dev", _forbids_options),
    "PASSFS_OWNER": Setting("1234:1235", _gives_directories),
    "host.source": Setting("{}/host", _sees_one_directory),
    "data.source": Setting("{}/data", _keeps_data_there),
}


def test_every_setting_has_a_row() -> None:
    manifest = read_manifest(TREE)
    settable = {
        *(f"{mount['name']}.source" for mount in manifest["mounts"] if mount.get("settable")),
        *(entry["name"] for entry in manifest["env"] if entry.get("settable")),
    }

    assert settable == SETTINGS.keys()


def test_settings_have_their_effect(engine: OwnEngine, driver: Driver, tmp_path: Path) -> None:
    """All settings change at once, because each change takes a restart of the plugin.

    A volume made before the change has its data after it.
    """
    for name in ("host", "host/source", "data"):
        (tmp_path / name).mkdir()
    wanted = {name: setting.value.format(tmp_path) for name, setting in SETTINGS.items()}
    with driver.volume() as kept:
        driver.run(kept, "echo kept > /data/file")
        with _set(engine, driver, **wanted):
            for setting in SETTINGS.values():
                setting.check(engine, driver, tmp_path)
        assert driver.run(kept, "cat /data/file") == "kept\n"


def test_other_settings_are_refused(engine: OwnEngine, driver: Driver) -> None:
    """The paths of mounts and data in the plugin are fixed in config.json."""
    engine.client.api.disable_plugin(driver.name, force=True)
    try:
        for setting in ("PASSFS_MOUNT_DIR=/mnt", "PASSFS_UNKNOWN=1"):
            with pytest.raises(docker.errors.APIError):
                engine.client.api.configure_plugin(driver.name, [setting])
    finally:
        engine.client.api.enable_plugin(driver.name, timeout=0)


def test_an_upgrade_from_a_registry_keeps_everything(
    engine: OwnEngine, driver: Driver, plugin_tree: Path, tmp_path: Path
) -> None:
    """The engine forgets only the sources of mounts, which the administrator sets again."""
    with registry(tmp_path, engine.network) as address, driver.volume(cache="never") as volume:
        driver.run(volume, "echo kept > /data/file")
        newer = f"{address}/passfs:newer"
        _pushed(engine, plugin_tree, newer)
        engine.docker("plugin", "disable", "--force", driver.name)
        engine.docker("plugin", "set", driver.name, "PASSFS_LOG_LEVEL=debug")
        upgrade = ("plugin", "upgrade", "--grant-all-permissions", "--skip-remote-check")
        engine.docker(*upgrade, driver.name, newer)

        inspected = engine.client.api.inspect_plugin(driver.name)
        assert inspected["Config"]["Description"] == "newer"
        assert build_stamp(inspected) == "newer"
        assert environment(inspected)["PASSFS_LOG_LEVEL"] == "debug"
        assert mount_sources(inspected)["data.source"] == "/var/lib/passfs"
        settings = ("PASSFS_LOG_LEVEL=info", f"data.source={driver.data_dir}")
        engine.docker("plugin", "set", driver.name, *settings)
        engine.docker("plugin", "enable", driver.name)
        assert driver.status(volume)["options"]["cache"] == "never"
        assert driver.run(volume, "cat /data/file; echo new > /data/new") == "kept\n"
        assert (driver.own_directory(volume) / "new").read_text() == "new\n"


def _pushed(engine: OwnEngine, tree: Path, name: str) -> None:
    """Push another build of the plugin to the registry, and remove it from the engine."""
    config, file = tree / "config.json", tree / "rootfs" / "newer"
    text = config.read_text()
    manifest = json.loads(text)
    manifest["description"] = "newer"
    manifest["env"] = [entry for entry in manifest["env"] if entry["name"] != BUILD]
    manifest["env"].append({"name": BUILD, "description": "Id of the build", "value": "newer"})
    config.write_text(json.dumps(manifest))
    file.touch()
    try:
        engine.client.api.create_plugin(name, str(tree))
    finally:
        config.write_text(text)
        file.unlink()
    try:
        engine.docker("plugin", "push", name)
    finally:
        engine.client.api.remove_plugin(name, force=True)


def test_a_later_mount_of_the_host_is_visible(driver: Driver, source: Path) -> None:
    """A mount in the source appears in a volume in use, and so does its unmount."""
    _mount("-t", "tmpfs", "--make-shared", "source", source)  # as systemd makes all mounts
    try:
        driver.restart()
        disk = source / "disk"
        disk.mkdir()
        with (
            driver.volume(source=str(source), cache="never") as volume,
            driver.container(volume) as container,
        ):
            _mount("-t", "tmpfs", "disk", disk)
            (disk / "file").write_text("later")
            assert execute(container, "cat /data/disk/file") == "later"
            wait_until(lambda: _unmounts(disk, driver.mountpoint(volume)))
            assert execute(container, "ls /data/disk") == ""
    finally:
        subprocess.run(["umount", "--lazy", source], check=True, timeout=30)


def _unmounts(directory: Path, mountpoint: str) -> bool:
    """Unmount a file system; return false as long as inodes of the volume at *mountpoint* use it.

    The kernel does not wait until the worker has closed those that it forgets.
    """
    forget(Path(mountpoint))
    return subprocess.run(["umount", directory], check=False, timeout=30).returncode == 0


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True, timeout=30)


def test_the_plugin_keeps_no_container_or_image_busy(engine: OwnEngine, driver: Driver) -> None:
    """The plugin sees the mounts of a container that ran at its start, and keeps none busy."""
    image = engine.client.api.import_image_from_data(_another_image(engine), repository="another")
    assert image
    container = engine.client.containers.run(
        "another", ["sleep", "infinity"], detach=True, init=True, network_mode="none"
    )
    try:
        root = Path(container.attrs["GraphDriver"]["Data"]["MergedDir"])
        assert (root / "bin").is_dir()
        driver.restart()
    finally:
        container.remove(force=True)
    engine.client.images.remove("another")

    assert not root.parent.exists()


def _another_image(engine: OwnEngine) -> bytes:
    """Return the image of the tests with one more file, so that no other image has its layer."""
    exported = engine.client.containers.create(TOOLS_IMAGE, ["true"], network_mode="none")
    try:
        data = io.BytesIO(b"".join(exported.export()))
    finally:
        exported.remove()
    with tarfile.open(fileobj=data, mode="a") as archive:
        archive.addfile(tarfile.TarInfo("another"))
    return data.getvalue()


@pytest.mark.slow
def test_prune_and_df_leave_volumes_alone(engine: OwnEngine, driver: Driver) -> None:
    """The engine counts and prunes volumes of its own driver only."""
    with driver.volume() as volume:
        driver.run(volume, "echo kept > /data/file")
        local = engine.client.volumes.create(driver="local")
        engine.docker("volume", "prune", "--force")
        engine.docker("system", "prune", "--volumes", "--force")

        assert [left.name for left in engine.client.volumes.list()] == [volume.name] != [local.name]
        assert driver.run(volume, "cat /data/file") == "kept\n"
        assert str(volume.name) not in engine.docker("system", "df", "--verbose")
        assert engine.client.api.df()["Volumes"] in (None, [])


@pytest.mark.parametrize(("option", "value"), [("readonly", "true"), ("map_uid", "1000:2000:10")])
def test_the_engine_copies_nothing_into_a_volume_with_nocopy(
    engine: OwnEngine, driver: Driver, option: str, value: str
) -> None:
    """Without nocopy, a container fails to start if the image has files at the mount point."""
    run = ("run", "--rm", "--network=none", "--volume")
    with driver.volume(**{option: value}) as volume:
        with pytest.raises(AssertionError, match=r"failed to (chmod|copy)"):
            engine.docker(*run, f"{volume.name}:/seed", TOOLS_IMAGE, "true")
        engine.docker(*run, f"{volume.name}:/seed:nocopy", TOOLS_IMAGE, "true")
