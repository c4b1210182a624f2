"""`passfs install`: when it builds, which certificates it trusts, which engines it takes."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from plugin import daemon, engine
from plugin.installation import TREE, Installation, InstallationError, digest
from tests.support.engine import BASE, FakeEngine, Install, container

PEM = "-----BEGIN CERTIFICATE-----\n"
REMAPPED: dict[str, Any] = {
    "OSType": "linux",
    "DockerRootDir": "/var/lib/docker/100000.100001",
    "SecurityOptions": ["name=seccomp,profile=default", "name=userns"],
}


@pytest.fixture
def docker() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def install(docker: FakeEngine, tmp_path: Path) -> Install:
    return Install(docker, tmp_path)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.pem"
    path.write_text(PEM)
    return path


def test_a_setting_builds_no_image(docker: FakeEngine, install: Install) -> None:
    install()
    assert docker.context != {}
    install(log_level="debug")

    assert docker.context == {}
    assert docker.settings()["PASSFS_LOG_LEVEL"] == "debug"
    assert install.transcript.steps == ["Configuring passfs", "Enabling passfs"]


def test_times_owners_and_the_umask_make_no_other_build(
    docker: FakeEngine, install: Install
) -> None:
    install()
    for path in [install.tree, *install.tree.rglob("*")]:
        os.utime(path, (1, 1))
        os.chown(path, 1000, 1000)
        path.chmod(path.stat().st_mode & ~0o077)
    (install.tree / "plugin" / "__pycache__" / "another.pyc").touch()
    install()

    assert docker.context == {}


@pytest.mark.parametrize("name", ["Dockerfile", "config.json", "plugin/module.py", "plugin/new.py"])
def test_a_change_of_any_source_is_built(docker: FakeEngine, install: Install, name: str) -> None:
    install()
    with (install.tree / name).open("a") as file:
        file.write("\n")
    install()

    assert docker.context != {}
    assert docker.calls[-1] == "enable passfs"


def test_a_program_that_becomes_executable_is_a_change(install: Install) -> None:
    before = digest(install.tree)
    (install.tree / "plugin" / "module.py").chmod(0o755)

    assert digest(install.tree) != before


def test_a_newer_base_image_is_built_on(docker: FakeEngine, install: Install) -> None:
    install()
    docker.local_images[BASE] = "sha256:" + 64 * "c"
    install()
    assert docker.context != {}

    install()
    assert docker.context == {}


def test_a_base_image_that_was_removed_is_no_reason_to_build(
    docker: FakeEngine, install: Install
) -> None:
    install()
    docker.local_images = {}
    install(log_level="debug")

    assert docker.context == {}


def test_running_containers_are_found_before_the_build(
    docker: FakeEngine, install: Install
) -> None:
    install()
    install.change_sources()
    docker.running = [container("web", "passfs:latest")]
    with pytest.raises(InstallationError, match="web"):
        install()

    assert install.transcript.steps == []


def test_a_bundle_is_remembered(docker: FakeEngine, install: Install, bundle: Path) -> None:
    install(ca_bundle=str(bundle))
    install.change_sources()
    bundle.write_text(2 * PEM)
    install()

    assert docker.context["ca-bundle.crt"].size == len(2 * PEM)


def test_a_bundle_that_comes_with_a_setting_is_remembered(
    docker: FakeEngine, install: Install, bundle: Path
) -> None:
    install()
    install(ca_bundle=str(bundle))
    assert docker.calls == []
    install.change_sources()
    install()

    assert "ca-bundle.crt" in docker.context


def test_a_bundle_outlives_the_plugin_and_a_move_of_the_data_directory(
    docker: FakeEngine, install: Install, bundle: Path, tmp_path: Path
) -> None:
    install(ca_bundle=str(bundle))
    engine.uninstall(docker, Installation(), install.transcript)
    install()
    assert "ca-bundle.crt" in docker.context

    install.change_sources()
    install(data_dir=str(tmp_path / "elsewhere"))
    assert "ca-bundle.crt" in docker.context
    install.change_sources()
    install(data_dir=str(tmp_path / "elsewhere"))
    assert "ca-bundle.crt" in docker.context


def test_a_bundle_is_forgotten_when_told_so(
    docker: FakeEngine, install: Install, bundle: Path
) -> None:
    install(ca_bundle=str(bundle))
    install(ca_bundle="")
    install.change_sources()
    install()

    assert "ca-bundle.crt" not in docker.context


def test_a_bundle_that_is_gone_is_left_out_with_a_line(
    docker: FakeEngine, install: Install, bundle: Path
) -> None:
    install(ca_bundle=str(bundle))
    bundle.unlink()
    install.change_sources()
    transcript = install()
    assert f"building without the CA bundle {bundle} of an earlier install, which is gone" in (
        transcript.lines
    )
    assert "ca-bundle.crt" not in docker.context

    bundle.write_text(PEM)
    install.change_sources()
    install()
    assert "ca-bundle.crt" in docker.context


def test_a_bundle_is_remembered_by_its_whole_path(
    install: Install, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    install(ca_bundle=bundle.name)

    assert (install.data_dir / "ca-bundle.crt").readlink() == bundle


def test_a_bundle_of_a_failed_build_is_not_remembered(
    docker: FakeEngine, install: Install, bundle: Path
) -> None:
    docker.build_events = [{"error": "pip returned 1"}]
    with pytest.raises(InstallationError, match="pip returned 1"):
        install(ca_bundle=str(bundle))

    assert not (install.data_dir / "ca-bundle.crt").is_symlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--ca-bundle '.*proxy.pem' cannot be read: No such file"),
        ("DER", "--ca-bundle '.*proxy.pem' holds no certificate; expected a PEM file"),
    ],
)
def test_a_bundle_that_is_none_is_refused_before_the_build(
    docker: FakeEngine, install: Install, bundle: Path, content: str | None, message: str
) -> None:
    bundle.unlink() if content is None else bundle.write_text(content)
    with pytest.raises(InstallationError, match=message):
        install(ca_bundle=str(bundle))

    assert docker.context == {}


def test_a_full_data_directory_is_refused_before_the_build(
    docker: FakeEngine, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(InstallationError, match=r"cannot be written to: No space left.*--data-dir"):
        install()

    assert docker.context == {}


# What the engine is.


def test_an_engine_that_remaps_users_gives_volumes_to_its_root(
    docker: FakeEngine, install: Install
) -> None:
    docker.says = REMAPPED
    install(default_options="cache=never")

    assert docker.settings()["PASSFS_OWNER"] == "100000:100001"
    assert docker.settings()["PASSFS_DEFAULT_OPTIONS"] == "cache=never"
    assert install.transcript.lines[-1] == (
        "new volumes without a source belong to 100000:100001, the root of this engine's containers"
    )


def test_an_owner_survives_upgrades_and_an_administrators_is_kept(
    docker: FakeEngine, install: Install
) -> None:
    docker.says = REMAPPED
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


def test_an_older_plugin_gets_an_owner_by_the_upgrade(docker: FakeEngine, install: Install) -> None:
    install()
    assert docker.settings()["PASSFS_OWNER"] == ""
    docker.says = REMAPPED
    install()

    assert docker.settings()["PASSFS_OWNER"] == "100000:100001"


def test_a_directory_whose_name_looks_remapped_is_none(docker: FakeEngine) -> None:
    docker.says = REMAPPED | {"SecurityOptions": None}

    assert daemon.remapped_root(docker.says) == ""


class Rootless:
    """A rootless engine of the user that runs the tests, or of another one."""

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
    docker.says = engine.info
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return engine


@pytest.mark.usefixtures("rootless")
def test_the_user_of_a_rootless_engine_has_the_data_at_home(
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
def test_a_rootless_engine_cannot_have_roots_data_directory(
    docker: FakeEngine, install: Install
) -> None:
    install.data_dir.mkdir()
    os.chown(install.data_dir, 1234, 1234)
    with pytest.raises(InstallationError, match=r"belongs to user 1234.*--data-dir, such as /"):
        install()

    assert docker.context == {}


def test_a_rootless_engine_elsewhere_is_refused(
    docker: FakeEngine, install: Install, rootless: Rootless
) -> None:
    rootless.root.rmdir()
    with pytest.raises(InstallationError, match=r"rootless, and its directory .* cannot be seen"):
        install()

    assert docker.context == {}


@pytest.mark.parametrize(
    ("info", "user", "fuse", "message"),
    [
        ({}, 1000, daemon.FUSE, "run this as root"),
        ({"OSType": "windows"}, 0, daemon.FUSE, "this engine runs windows containers"),
        ({}, 0, "/no/fuse", "there is no /no/fuse; load the kernel's module: `modprobe fuse`"),
        (
            {"SecurityOptions": ["name=rootless"], "DockerRootDir": "/"},
            *(0, "/no/fuse", "user 0 may not open /no/fuse .*chmod 0666"),
        ),
    ],
)
def test_what_cannot_succeed_is_refused(
    docker: FakeEngine, info: dict[str, Any], user: int, fuse: str, message: str
) -> None:
    with pytest.raises(InstallationError, match=message):
        daemon.check(docker.says | info, user, fuse)


def test_the_tree_that_tests_run_from_has_a_digest() -> None:
    assert digest(TREE) == digest(TREE)
