"""The steps of `passfs install` and `passfs uninstall`, with a fake engine."""

import contextlib
import copy
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from plugin.__main__ import app
from plugin.install import engine, installer
from plugin.install.installation import TREE, Installation, InstallationError
from plugin.install.source_tree import CONTEXT
from tests.support.fakes.engine import (
    BASE,
    FakeEngine,
    Install,
    Transcript,
    container,
    root_file_system,
)


def test_a_first_install_creates_configures_and_enables(
    docker: FakeEngine, install: Install
) -> None:
    install(host_dir="/usr/", log_level="debug")

    assert docker.calls == ["create passfs", "configure passfs", "enable passfs"]
    assert docker.plugins["passfs"]["Enabled"]
    settings = docker.settings()
    assert settings["host.source"] == settings["PASSFS_HOST_DIR"] == "/usr"
    assert settings["data.source"] == str(install.data_dir)
    assert settings["PASSFS_LOG_LEVEL"] == "debug"
    assert stat.S_IMODE(install.data_dir.stat().st_mode) == 0o700


@pytest.mark.parametrize("address", ["127.0.0.1:9464", "/run/m.sock"])
def test_metrics_that_the_host_does_not_reach_are_refused(
    docker: FakeEngine, install: Install, address: str
) -> None:
    with pytest.raises(InstallationError, match="expected a Unix socket in PASSFS_DATA_DIR"):
        install(metrics=address)
    assert docker.calls == []


def test_metrics_in_the_data_directory_are_set(docker: FakeEngine, install: Install) -> None:
    install(metrics="/var/lib/passfs/m.sock")
    assert docker.settings()["PASSFS_METRICS"] == "/var/lib/passfs/m.sock"


def test_the_root_file_system_keeps_owners_modes_and_links(
    docker: FakeEngine, install: Install
) -> None:
    install()

    assert stat.S_IMODE(docker.exported["bin/su"].st_mode) == 0o4755
    assert docker.exported["srv/mine"].st_uid == 1234
    assert stat.S_ISLNK(docker.exported["etc/mtab"].st_mode)
    assert stat.S_IMODE(docker.exported["tmp"].st_mode) == 0o1777
    assert "dev/null" not in docker.exported
    assert docker.left_containers == set()


def test_the_progress_of_the_export_ends_at_its_size(install: Install) -> None:
    transcript = install()

    assert transcript.amounts[-1] == (len(root_file_system()), len(root_file_system()))


def test_the_build_context_has_the_sources_without_their_owners(
    docker: FakeEngine, install: Install, tmp_path: Path
) -> None:
    bundle = tmp_path / "proxy.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----")
    install(ca_bundle=str(bundle))

    assert {name.partition("/")[0] for name in docker.context} == {"ca-bundle.crt"} | {
        name.partition("/")[0] for name in CONTEXT
    }
    assert docker.context["ca-bundle.crt"].size == 27
    assert {(member.uid, member.uname) for member in docker.context.values()} == {(0, "")}
    assert not [name for name in docker.context if "__pycache__" in name]


def test_a_second_install_changes_nothing(docker: FakeEngine, install: Install) -> None:
    install()
    docker.running = [container("app", "passfs:latest")]
    transcript = install()

    assert docker.calls == []
    assert "nothing to do" in transcript.lines[-1]


def test_a_plugin_that_docker_has_upgraded_is_replaced(
    docker: FakeEngine, install: Install
) -> None:
    """`docker plugin upgrade` replaces Config, and keeps the environment in Settings."""
    install()
    config = docker.plugins["passfs"]["Config"]
    config["Env"] = [entry for entry in config["Env"] if entry["Name"] != installer.BUILD]
    install()

    assert "create passfs" in docker.calls


def test_a_disabled_plugin_is_enabled_again(docker: FakeEngine, install: Install) -> None:
    install()
    docker.plugins["passfs"]["Enabled"] = False
    install()

    assert docker.calls == ["enable passfs"]


def test_a_changed_setting_needs_no_new_plugin(docker: FakeEngine, install: Install) -> None:
    install(host_dir="/usr")
    install(log_level="warning")

    assert docker.calls == ["disable passfs", "configure passfs", "enable passfs"]
    assert docker.settings()["PASSFS_LOG_LEVEL"] == "warning"
    assert docker.settings()["PASSFS_HOST_DIR"] == "/usr"


def test_restrictions_of_volumes_are_kept_until_they_are_changed(
    docker: FakeEngine, install: Install
) -> None:
    decided = {
        "PASSFS_ALLOWED_SOURCES": "/usr/lib:/usr/share",
        "PASSFS_DEFAULT_OPTIONS": "cache=never,ro",
        "PASSFS_FORBIDDEN_OPTIONS": "rw,suid",
    }
    install(
        allowed_sources="/usr/lib:/usr/share",
        default_options="cache=never,ro",
        forbidden_options="rw,suid",
    )
    assert docker.settings().items() >= decided.items()

    install.change_sources()
    install()
    assert docker.settings().items() >= decided.items()

    install(allowed_sources="", forbidden_options="")
    forgotten = {"PASSFS_ALLOWED_SOURCES": "", "PASSFS_FORBIDDEN_OPTIONS": ""}
    assert docker.settings().items() >= (decided | forgotten).items()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], {}),
        (
            ["--allow-source", "/a", "--allow-source", "/b", "--default-options", "ro"],
            {"allowed_sources": "/a:/b", "default_options": "ro"},
        ),
        (["--allow-source", ""], {"allowed_sources": ""}),
        (["--forbid-options", "suid,dev=true"], {"forbidden_options": "suid,dev=true"}),
    ],
)
def test_flags_of_the_command_become_settings(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], wanted: dict[str, str]
) -> None:
    asked: list[Installation] = []
    monkeypatch.setattr(engine, "connect", contextlib.nullcontext)
    monkeypatch.setattr(
        installer, "install", lambda _client, wanted, _display: asked.append(wanted)
    )
    result = CliRunner().invoke(app, ["install", *arguments])

    assert result.exit_code == 0, result.output
    assert asked[0].settings == wanted


def test_an_empty_tree_is_not_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "connect", contextlib.nullcontext)
    result = CliRunner().invoke(app, ["install", "--tree", ""])

    assert result.exit_code == 1
    assert "--tree takes the directory of a checkout, not ''." in result.output


@pytest.mark.parametrize(("option", "field"), [("host-dir", "host_dir"), ("data-dir", "data_dir")])
def test_an_empty_directory_is_refused(install: Install, option: str, field: str) -> None:
    with pytest.raises(InstallationError, match=f"--{option} takes an absolute path .* not ''"):
        install(**{field: ""})


def test_an_upgrade_changes_the_old_plugin_after_the_new_one_has_started(
    docker: FakeEngine, install: Install
) -> None:
    install()
    install.change_sources()
    install()

    assert docker.calls == [
        "create passfs-trial",
        "configure passfs-trial",
        "enable passfs-trial",
        "disable passfs-trial",
        "remove passfs-trial",
        "disable passfs",
        "remove passfs",
        "create passfs",
        "configure passfs",
        "enable passfs",
    ]
    assert list(docker.plugins) == ["passfs"]


def test_an_upgrade_keeps_set_values_and_takes_new_defaults(
    docker: FakeEngine, install: Install
) -> None:
    install(host_dir="/usr")
    old = docker.plugins["passfs"]
    # The older version had another default, and a setting that no longer exists.
    old["Config"]["Env"] += [{"Name": "PASSFS_GONE", "Value": "1"}]
    old["Settings"]["Env"] += ["PASSFS_GONE=2"]
    for entry in old["Config"]["Env"]:
        entry["Value"] = "error" if entry["Name"] == "PASSFS_LOG_LEVEL" else entry["Value"]
    old["Settings"]["Env"] = [
        "PASSFS_LOG_LEVEL=error" if entry.startswith("PASSFS_LOG_LEVEL") else entry
        for entry in old["Settings"]["Env"]
    ]
    install.change_sources()
    installer.install(docker, Installation(tree=install.tree), install.transcript)

    settings = docker.settings()
    assert settings["PASSFS_HOST_DIR"] == settings["host.source"] == "/usr"
    assert settings["data.source"] == str(install.data_dir)
    assert settings["PASSFS_LOG_LEVEL"] == "info"
    assert "PASSFS_GONE" not in settings


def test_a_new_plugin_that_does_not_start_does_not_replace_the_old_one(
    docker: FakeEngine, install: Install
) -> None:
    install()
    install.change_sources()
    docker.broken = {"enable passfs-trial": "dial unix passfs.sock: no such file."}
    with pytest.raises(InstallationError, match=r"left as it is: .*dial unix passfs\.sock"):
        install()

    assert docker.plugins["passfs"]["Enabled"]
    assert "disable passfs" not in docker.calls
    assert list(docker.plugins) == ["passfs"]


def test_a_trial_plugin_of_a_killed_install_is_removed(
    docker: FakeEngine, install: Install
) -> None:
    install()
    docker.plugins["passfs-trial"] = trial(docker, "/var/tmp/passfs-trial-x")
    install.change_sources()
    install()

    assert list(docker.plugins) == ["passfs"]
    assert docker.plugins["passfs"]["Enabled"]


def test_a_plugin_with_the_name_of_the_trial_stays(docker: FakeEngine, install: Install) -> None:
    install()
    docker.plugins["passfs-trial"] = trial(docker, "/srv/trial")
    install.change_sources()
    with pytest.raises(InstallationError, match=r"there is a plugin of that name; remove it first"):
        install()

    assert sorted(docker.plugins) == ["passfs", "passfs-trial"]


def trial(docker: FakeEngine, data_dir: str) -> dict[str, Any]:
    """Return an installed plugin `passfs-trial` with another data directory."""
    plugin: dict[str, Any] = copy.deepcopy(docker.inspect_plugin("passfs"))
    for mount in plugin["Config"]["Mounts"]:
        if mount["Name"] == "data":
            mount["Source"] = data_dir
    return plugin | {"Name": "passfs-trial:latest"}


@pytest.mark.parametrize("change", [{}, {"log_level": "error"}], ids=str)
def test_volumes_mounted_in_running_containers_prevent_the_install(
    docker: FakeEngine, install: Install, change: dict[str, str]
) -> None:
    install()
    if not change:
        install.change_sources()
    docker.running = [container("b", "local"), container("web", "passfs:latest")]
    with pytest.raises(InstallationError, match=r"containers.*: web\. .*--force"):
        install(**change)
    assert docker.calls == []
    assert docker.context == {}

    install(**change, force=True)
    assert docker.plugins["passfs"]["Enabled"]


def test_a_container_that_starts_during_the_build_prevents_the_upgrade(
    docker: FakeEngine, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    install.change_sources()

    def starts_now(name: str, timeout: int) -> None:
        del name, timeout
        docker.running = [container("late", "passfs")]

    monkeypatch.setattr(docker, "enable_plugin", starts_now)
    with pytest.raises(InstallationError, match="late"):
        install()

    assert "disable passfs" not in docker.calls


def test_a_failed_build_shows_the_end_of_its_output(docker: FakeEngine, install: Install) -> None:
    docker.build_events = [
        {"stream": "".join(f"line {number}\n" for number in range(100))},
        {"error": "pip returned 1"},
    ]
    with pytest.raises(InstallationError, match=r"line 99\npip returned 1") as caught:
        install()

    assert "line 10\n" not in str(caught.value)
    assert docker.calls == []


def test_a_missing_base_image_is_named_with_its_remedy(
    docker: FakeEngine, install: Install
) -> None:
    docker.local_images = {}
    docker.build_events = [{"error": "lookup registry-1.docker.io: no such host"}]
    with pytest.raises(InstallationError, match=f"no base image {BASE} .*no such host.*make up"):
        install()


@pytest.mark.parametrize("verb", ["create", "configure", "enable"])
def test_the_engines_reason_is_in_the_message(
    docker: FakeEngine, install: Install, verb: str
) -> None:
    docker.broken = {f"{verb} passfs": "disk is full"}
    with pytest.raises(InstallationError, match=f"could not {verb} the plugin.*disk is full"):
        install()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"host_dir": "srv"}, "--host-dir takes an absolute path.*'srv'"),
        ({"data_dir": "data"}, "--data-dir takes an absolute path.*'data'"),
        ({"host_dir": "/no/such/place"}, "'/no/such/place' does not exist.*--host-dir"),
        ({"data_dir": "/etc/passwd"}, "'/etc/passwd' cannot be made: File exists.*--data-dir"),
        ({"tree": Path("/etc")}, "/etc is not the source tree.*--tree"),
        ({"allowed_sources": "srv"}, "PASSFS_ALLOWED_SOURCES='srv' is not accepted"),
        ({"default_options": "cach=never"}, "PASSFS_DEFAULT_OPTIONS='cach=never'.*cache, perhaps"),
        ({"forbidden_options": "cache=auto"}, "set cache in PASSFS_DEFAULT_OPTIONS"),
        (
            {"host_dir": "/usr", "allowed_sources": "/etc"},
            "expected directories in PASSFS_HOST_DIR='/usr'",
        ),
    ],
)
def test_a_bad_setting_is_refused_before_the_build(
    docker: FakeEngine, install: Install, wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(InstallationError, match=message):
        install(**wanted)

    assert docker.context == {}


def test_uninstall_removes_the_plugin_and_no_data(docker: FakeEngine, install: Install) -> None:
    install()
    (install.data_dir / "passfs.db").write_text("records")
    docker.running = [container("web", "passfs:latest")]
    with pytest.raises(InstallationError, match="web"):
        installer.uninstall(docker, Installation(), install.transcript)

    installer.uninstall(docker, Installation(force=True), install.transcript)

    assert docker.plugins == {}
    assert (install.data_dir / "passfs.db").exists()
    assert str(install.data_dir) in install.transcript.lines[-1]


def test_uninstall_of_a_missing_plugin_is_refused(docker: FakeEngine) -> None:
    with pytest.raises(InstallationError, match="there is no plugin passfs"):
        installer.uninstall(docker, Installation(), Transcript())


@pytest.mark.parametrize("command", [installer.install, installer.uninstall])
def test_a_plugin_of_another_program_stays(
    docker: FakeEngine, command: Callable[..., object]
) -> None:
    config = {"Env": None, "Mounts": None, "Description": "sshFS plugin for Docker"}
    docker.plugins["vieux/sshfs"] = {"Enabled": True, "Config": config, "Settings": {"Env": None}}
    with pytest.raises(InstallationError, match=r"the plugin vieux/sshfs is not passfs.*--name"):
        command(docker, Installation(name="vieux/sshfs"), Transcript())
    assert docker.calls == []


def test_without_an_engine_the_error_names_the_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    result = CliRunner().invoke(app, ["install"])

    assert result.exit_code == 1
    assert f"no Docker engine answers at unix://{tmp_path}/none.sock" in result.output


def test_a_bad_setting_ends_serve_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSFS_LOG_LEVEL", "loud")
    result = CliRunner().invoke(app, ["serve"])

    assert result.exit_code == 2
    assert "PASSFS_LOG_LEVEL" in result.output
    assert "'loud'" in result.output


def test_the_installer_runs_from_this_tree() -> None:
    assert (TREE / "plugin" / "install" / "engine.py").samefile(engine.__file__)
