"""`passfs install` that fails or is cut off: the plugin or its settings are kept."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from plugin.errors import CannotStart
from plugin.install import installer
from plugin.install.installation import Installation, InstallationError
from plugin.volume import Record, VolumeName
from plugin.volumes import database, registry, schema
from tests.support.fakes.engine import FakeEngine, Install
from tests.support.tools.records import record


@pytest.mark.parametrize("verb", ["configure", "enable"])
def test_a_setting_with_which_the_plugin_does_not_start_is_undone(
    docker: FakeEngine, install: Install, verb: str
) -> None:
    install(log_level="info")
    before = docker.settings()
    docker.broken_once = {f"{verb} passfs": "it does not start"}
    with pytest.raises(InstallationError, match=r"it does not start\..* has its former settings"):
        install(log_level="debug")
    assert docker.settings() == before
    assert docker.plugins["passfs"]["Enabled"]
    install(log_level="debug")
    assert docker.settings()["PASSFS_LOG_LEVEL"] == "debug"


def test_undoing_a_setting_leaves_a_disabled_plugin_disabled(
    docker: FakeEngine, install: Install
) -> None:
    install()
    docker.disable_plugin("passfs", force=True)
    docker.broken_once = {"enable passfs": "it does not start"}
    with pytest.raises(InstallationError, match="it does not start"):
        install(log_level="debug")
    assert not docker.plugins["passfs"]["Enabled"]


def test_both_failures_are_reported_if_the_former_settings_fail_as_well(
    docker: FakeEngine, install: Install
) -> None:
    install()
    docker.broken = {"enable passfs": "it does not start"}
    docker.broken_once = {"configure passfs": "no such setting"}
    with pytest.raises(InstallationError, match=r"no such setting.* former .*it does not start"):
        install(log_level="debug")


@pytest.mark.parametrize("fault", ["newer", "damaged"])
def test_an_upgrade_is_tried_on_a_copy_of_the_registry(
    docker: FakeEngine, install: Install, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A registry that the new plugin cannot use is found before the old plugin is removed."""
    install()
    path = install.data_dir / registry.FILE_NAME
    with registry.Registry.open(install.data_dir) as opened:
        opened.add(record("vol"))
        opened.write_references(VolumeName("vol"), {"i": 1}, dead={"j": 1})
    good = path.read_bytes()
    tried: list[list[Record]] = []
    enable = docker.enable_plugin

    def start(name: str, timeout: int) -> None:
        if name == "passfs-trial":
            try:
                with registry.Registry.open(Path(docker.settings(name)["data.source"])) as copy:
                    tried.append([*copy.records])
            except CannotStart as error:
                docker.broken_once = {f"enable {name}": str(error)}
        enable(name, timeout)

    monkeypatch.setattr(docker, "enable_plugin", start)
    if fault == "newer":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA user_version = {schema.FORMAT + 1}")
    else:
        path.write_bytes(b"x" * len(good))
    broken = path.read_bytes()
    install.change_sources()
    reason = "newer passfs" if fault == "newer" else "cannot read the registry"
    with pytest.raises(InstallationError, match=f"passfs was left as it is: .*{reason}"):
        install()
    assert docker.plugins["passfs"]["Enabled"]
    assert "remove passfs" not in docker.calls
    assert path.read_bytes() == broken

    path.write_bytes(good)
    install()
    assert tried == [[]], "an engine may request a volume while both plugins run"
    assert path.read_bytes() == good


def test_a_journal_of_a_killed_plugin_does_not_prevent_an_upgrade(
    docker: FakeEngine, install: Install, tmp_path: Path
) -> None:
    """The registry has a journal, which only a plugin may roll back."""
    install()
    docker.disable_plugin("passfs", force=True)
    path, journal = install.data_dir / registry.FILE_NAME, f"{registry.FILE_NAME}-journal"
    with registry.Registry.open(tmp_path) as opened:
        opened.add(record("vol"))
    with closing(database.connect(tmp_path / registry.FILE_NAME)) as connection:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN IMMEDIATE")
        for number in range(1000):
            connection.execute("INSERT INTO refs VALUES ('vol', ?, 1)", (str(number),))
        shutil.copy(tmp_path / registry.FILE_NAME, path)
        shutil.copy(tmp_path / journal, install.data_dir / journal)
    install.change_sources()
    install()
    assert docker.plugins["passfs"]["Enabled"]
    with registry.Registry.open(install.data_dir) as opened:
        assert ([each.name for each in opened.records], opened.references) == (["vol"], {})


def test_a_data_directory_of_another_plugin_is_refused_before_the_build(
    docker: FakeEngine, install: Install
) -> None:
    install.data_dir.mkdir()
    with database.locked(install.data_dir / registry.LOCK_NAME):
        with pytest.raises(InstallationError, match=r"another passfs uses .*--data-dir"):
            install()
        assert (docker.calls, docker.context) == ([], {})
    install()
    with database.locked(install.data_dir / registry.LOCK_NAME):  # as a running plugin holds it
        install(log_level="debug")
        install.change_sources()
        install()
        with pytest.raises(InstallationError, match=r"another passfs uses .*--data-dir"):
            install(name="second")


@pytest.mark.parametrize("verb", ["remove", "create", "configure", "enable"])
def test_settings_survive_an_upgrade_that_is_cut_off(
    docker: FakeEngine, install: Install, verb: str
) -> None:
    """The engine has lost the settings: the next install must not allow every source."""
    install(host_dir="/usr", allowed_sources="/usr/lib", log_level="debug")
    before = docker.settings()
    install.change_sources()
    docker.broken_once = {f"{verb} passfs": "the disk is full"}
    with pytest.raises(InstallationError, match=r"disk is full\. .*settings are kept.*again"):
        install()
    installer.install(docker, Installation(tree=install.tree), install.transcript)
    assert docker.plugins["passfs"]["Enabled"]
    changed = {key for key in before if docker.settings()[key] != before[key]}
    assert changed <= {installer.BUILD}
    assert list((install.tree.parent / "default").iterdir()) == []


def test_settings_of_an_install_that_was_cut_off_give_way(
    docker: FakeEngine, install: Install
) -> None:
    """To those of the plugin, once the plugin is enabled; and they go with the plugin."""
    install(allowed_sources="/usr/lib")
    kept = install.tree.parent / "default" / "install-passfs.json"
    for _ in range(2):
        install.change_sources()
        docker.broken_once = {"enable passfs": "no such file"}
        with pytest.raises(InstallationError, match="settings are kept"):
            install(allowed_sources="/usr/lib")
        assert kept.exists()
        docker.configure_plugin("passfs", {"PASSFS_ALLOWED_SOURCES": "/usr/bin"})
        docker.enable_plugin("passfs", timeout=0)
        installer.install(docker, Installation(tree=install.tree), install.transcript)
        assert docker.settings()["PASSFS_ALLOWED_SOURCES"] == "/usr/bin"
        assert not kept.exists()

    kept.write_text('{"PASSFS_ALLOWED_SOURCES": "/usr/lib"}')
    installer.uninstall(docker, Installation(tree=install.tree), install.transcript)
    assert not kept.exists()


def test_an_install_does_not_need_the_default_data_directory(
    docker: FakeEngine, install: Install
) -> None:
    (install.tree.parent / "default").write_text("no directory")
    install(host_dir="/usr")
    install.change_sources()
    docker.broken_once = {"create passfs": "the disk is full"}
    with pytest.raises(
        InstallationError, match=r"settings are lost: .* again, .*PASSFS_HOST_DIR=/usr"
    ):
        install()
    install(host_dir="/usr")
    assert docker.plugins["passfs"]["Enabled"]


def test_unreadable_kept_settings_are_refused(install: Install) -> None:
    (install.tree.parent / "default").mkdir()
    (install.tree.parent / "default" / "install-passfs.json").write_text("x")
    with pytest.raises(InstallationError, match=r"install-passfs\.json.* remove the file"):
        install()


def test_an_upgrade_replaces_an_empty_path_by_the_default(
    docker: FakeEngine, install: Install
) -> None:
    """An older plugin read an empty path, from `docker plugin set NAME=`, as the default."""
    install(default_options="ro")
    environment = docker.plugins["passfs"]["Settings"]["Env"]
    environment.remove("PASSFS_HOST_DIR=/")
    environment.append("PASSFS_HOST_DIR=")
    install.change_sources()
    install()
    assert docker.settings()["PASSFS_HOST_DIR"] == "/"
    assert docker.settings()["PASSFS_DEFAULT_OPTIONS"] == "ro"
