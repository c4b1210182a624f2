"""`passfs install`: reasons for a build, CA bundles, and refusals before a build."""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from plugin.install import installer
from plugin.install.installation import TREE, Installation, InstallationError, check_name
from plugin.install.source_tree import digest
from tests.support.fakes.engine import BASE, FakeEngine, Install, container

PEM = "-----BEGIN CERTIFICATE-----\n"


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


def test_times_owners_the_umask_and_compiled_files_cause_no_build(
    docker: FakeEngine, install: Install
) -> None:
    install()
    for path in [install.tree, *install.tree.rglob("*")]:
        os.utime(path, (1, 1))
        os.chown(path, 1000, 1000)
        path.chmod(path.stat().st_mode & ~0o077)
    for name in ("plugin/__pycache__/another.pyc", "passthrough/module.c", "passthrough/module.so"):
        (install.tree / name).touch()
    install()

    assert docker.context == {}


@pytest.mark.parametrize("name", ["Dockerfile", "config.json", "plugin/module.py", "plugin/new.py"])
def test_a_change_of_a_source_causes_a_build(
    docker: FakeEngine, install: Install, name: str
) -> None:
    install()
    with (install.tree / name).open("a") as file:
        file.write("\n")
    install()

    assert docker.context != {}
    assert docker.calls[-1] == "enable passfs"


def test_an_executable_bit_changes_the_digest(install: Install) -> None:
    before = digest(install.tree)
    (install.tree / "plugin" / "module.py").chmod(0o755)

    assert digest(install.tree) != before


def test_a_newer_base_image_causes_a_build(docker: FakeEngine, install: Install) -> None:
    install()
    docker.local_images[BASE] = "sha256:" + 64 * "c"
    install()
    assert docker.context != {}

    install()
    assert docker.context == {}


def test_a_removed_base_image_causes_no_build(docker: FakeEngine, install: Install) -> None:
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


def test_later_installs_use_the_bundle(docker: FakeEngine, install: Install, bundle: Path) -> None:
    install(ca_bundle=str(bundle))
    install.change_sources()
    bundle.write_text(2 * PEM)
    install()

    assert docker.context["ca-bundle.crt"].size == len(2 * PEM)


def test_later_installs_use_a_bundle_that_came_with_a_setting(
    docker: FakeEngine, install: Install, bundle: Path
) -> None:
    install()
    install(ca_bundle=str(bundle))
    assert docker.calls == []
    install.change_sources()
    install()

    assert "ca-bundle.crt" in docker.context


def test_a_bundle_survives_an_uninstall_and_another_data_directory(
    docker: FakeEngine, install: Install, bundle: Path, tmp_path: Path
) -> None:
    install(ca_bundle=str(bundle))
    installer.uninstall(docker, Installation(), install.transcript)
    install()
    assert "ca-bundle.crt" in docker.context

    install.change_sources()
    install(data_dir=str(tmp_path / "elsewhere"))
    assert "ca-bundle.crt" in docker.context
    install.change_sources()
    install(data_dir=str(tmp_path / "elsewhere"))
    assert "ca-bundle.crt" in docker.context


def test_an_empty_bundle_forgets_the_last_one(
    docker: FakeEngine, install: Install, bundle: Path
) -> None:
    install(ca_bundle=str(bundle))
    install(ca_bundle="")
    install.change_sources()
    install()

    assert "ca-bundle.crt" not in docker.context


def test_a_missing_bundle_is_left_out_and_reported(
    docker: FakeEngine, install: Install, bundle: Path
) -> None:
    install(ca_bundle=str(bundle))
    bundle.unlink()
    install.change_sources()
    transcript = install()
    assert f"building without the CA bundle {bundle} of an earlier install: it is missing" in (
        transcript.lines
    )
    assert "ca-bundle.crt" not in docker.context

    bundle.write_text(PEM)
    install.change_sources()
    install()
    assert "ca-bundle.crt" in docker.context


def test_a_bundle_is_kept_by_its_absolute_path(
    install: Install, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    install(ca_bundle=bundle.name)

    assert (install.data_dir / "ca-bundle.crt").readlink() == bundle


def test_a_bundle_of_a_failed_build_is_not_kept(
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
def test_an_unusable_bundle_is_refused_before_the_build(
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


@pytest.mark.parametrize(
    "directory", ["/var/tmp", tempfile.gettempdir()], ids=["scratch", "temporary"]
)
def test_too_little_space_is_refused_before_the_build(
    docker: FakeEngine, install: Install, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    def usage(of: str) -> SimpleNamespace:
        return SimpleNamespace(free=199_000_000 if of == directory else 10**10)

    monkeypatch.setattr("shutil.disk_usage", usage)
    with pytest.raises(InstallationError, match=f"'{directory}' has 199 MB free; .* needs .00 MB"):
        install()

    assert docker.context == {}


def test_a_disk_that_fills_up_during_the_export_is_reported(
    docker: FakeEngine, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tarfile.TarFile.extractall", full)
    with pytest.raises(InstallationError, match=r"could not export the image: .*No space left"):
        install()

    assert docker.left_containers == set()


@pytest.mark.parametrize("name", ["Passfs", "a b", "", "-x", "x-", "a@b", "passfs:", "a__._b", "ä"])
def test_an_invalid_name_is_refused_before_the_build(
    docker: FakeEngine, install: Install, name: str
) -> None:
    with pytest.raises(InstallationError, match=f"--name '{name}' is not accepted; expected lower"):
        install(name=name)

    assert docker.context == {}


@pytest.mark.parametrize(
    "name", ["passfs", "passfs:latest", "a/b_c", "p--1", "Host.org:5000/x/y:V1.0", "a__b"]
)
def test_valid_names_are_accepted(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("call", ["info", "inspect", "containers"])
def test_a_refused_request_is_reported(docker: FakeEngine, install: Install, call: str) -> None:
    docker.broken = {call: "authorization denied by plugin"}
    with pytest.raises(InstallationError, match=r"engine could not .*: authorization denied by"):
        install()

    assert docker.context == {}


def test_the_source_tree_of_the_tests_has_a_digest() -> None:
    assert digest(TREE) == digest(TREE)
