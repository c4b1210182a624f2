"""Engines with userns-remap, rootless engines, and engines that cannot run the plugin."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from plugin.install import engine_facts
from plugin.install.installation import InstallationError
from tests.support.fakes.engine import FakeEngine, Install

REMAPPED: dict[str, Any] = {
    "OSType": "linux",
    "DockerRootDir": "/var/lib/docker/100000.100001",
    "SecurityOptions": ["name=seccomp,profile=default", "name=userns"],
}


def test_an_engine_that_remaps_users_gives_volumes_to_its_root(
    docker: FakeEngine, install: Install
) -> None:
    docker.info_answer = REMAPPED
    install(default_options="cache=never")

    assert docker.settings()["PASSFS_OWNER"] == "100000:100001"
    assert docker.settings()["PASSFS_DEFAULT_OPTIONS"] == "cache=never"
    assert install.transcript.lines[-1] == (
        "new volumes without a source belong to 100000:100001, the root of this engine's containers"
    )


def test_an_upgrade_keeps_a_detected_and_a_set_owner(docker: FakeEngine, install: Install) -> None:
    docker.info_answer = REMAPPED
    install()
    install.change_sources()
    install(default_options="uid=5")
    assert docker.settings()["PASSFS_OWNER"] == "100000:100001"
    assert docker.settings()["PASSFS_DEFAULT_OPTIONS"] == "uid=5"

    docker.plugins["passfs"]["Enabled"] = False
    docker.configure_plugin("passfs", {"PASSFS_OWNER": "7:7"})
    install.change_sources()
    install()
    assert docker.settings()["PASSFS_OWNER"] == "7:7"


def test_an_upgrade_gives_an_older_plugin_an_owner(docker: FakeEngine, install: Install) -> None:
    install()
    assert docker.settings()["PASSFS_OWNER"] == ""
    docker.info_answer = REMAPPED
    install()

    assert docker.settings()["PASSFS_OWNER"] == "100000:100001"


def test_without_userns_remap_the_directory_s_name_means_nothing(docker: FakeEngine) -> None:
    docker.info_answer = REMAPPED | {"SecurityOptions": None}

    assert engine_facts.remapped_root(docker.info_answer) == ""


class Rootless:
    """A rootless engine of the user that runs the tests, or of another user."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "docker"
        self.root.mkdir()
        self.info: dict[str, Any] = {
            "OSType": "linux",
            "DockerRootDir": str(self.root),
            "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"],
        }


@pytest.fixture
def rootless(docker: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rootless:
    engine = Rootless(tmp_path)
    docker.info_answer = engine.info
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return engine


@pytest.mark.usefixtures("rootless")
def test_the_plugin_of_a_rootless_engine_keeps_its_data_in_the_home_directory(
    docker: FakeEngine, install: Install, tmp_path: Path
) -> None:
    install(data_dir=None)
    home = tmp_path / "home" / ".local" / "share" / "passfs"
    assert docker.settings()["data.source"] == str(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert docker.plugins["passfs"]["Enabled"]
    assert docker.settings()["PASSFS_OWNER"] == ""

    install()
    assert docker.settings()["data.source"] == str(install.data_dir)


def test_a_rootless_engine_of_another_user_is_refused_before_the_build(
    docker: FakeEngine, install: Install, rootless: Rootless
) -> None:
    os.chown(rootless.root, 1234, 1234)
    with pytest.raises(InstallationError, match=r"belongs to user 1234, and you are user 0\. Run"):
        install()

    assert docker.context == {}
    assert not install.data_dir.exists()


@pytest.mark.usefixtures("rootless")
def test_a_rootless_engine_cannot_use_a_data_directory_of_root(
    docker: FakeEngine, install: Install
) -> None:
    install.data_dir.mkdir()
    os.chown(install.data_dir, 1234, 1234)
    with pytest.raises(InstallationError, match=r"belongs to user 1234.*--data-dir, such as /"):
        install()

    assert docker.context == {}


def test_a_rootless_engine_on_another_machine_is_refused(
    docker: FakeEngine, install: Install, rootless: Rootless
) -> None:
    rootless.root.rmdir()
    with pytest.raises(InstallationError, match=r"rootless, and its directory .* cannot be read"):
        install()

    assert docker.context == {}


@pytest.mark.parametrize(
    ("info", "user", "fuse", "message"),
    [
        ({}, 1000, engine_facts.FUSE, "run `passfs install` as root"),
        ({"OSType": "windows"}, 0, engine_facts.FUSE, "this engine runs windows containers"),
        ({}, 0, "/no/fuse", "there is no /no/fuse; load the kernel's module: `modprobe fuse`"),
        (
            {"SecurityOptions": ["name=rootless"], "DockerRootDir": "/"},
            *(0, "/no/fuse", "user 0 may not open /no/fuse .*chmod 0666"),
        ),
    ],
)
def test_an_engine_that_cannot_run_the_plugin_is_refused(
    docker: FakeEngine, info: dict[str, Any], user: int, fuse: str, message: str
) -> None:
    with pytest.raises(InstallationError, match=message):
        engine_facts.check(docker.info_answer | info, user, fuse)
