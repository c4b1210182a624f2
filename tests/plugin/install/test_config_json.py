"""config.json: the engine neither checks it nor refuses unknown keys, so these tests do."""

import re
import shlex
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from plugin.__main__ import app
from plugin.admin.settings import SETTINGS, Settings
from plugin.install.installation import TREE
from plugin.install.source_tree import CONTEXT, base_images

# sockaddr_un.sun_path holds 108 bytes with the final NUL. The engine puts the socket into a
# directory; the name of the directory is the plugin's id of 64 digits.
SOCKET_PATH_LIMIT = 107
ENGINE_SOCKET_DIR = "/run/docker/plugins/" + 64 * "f"
RUNTIME_ENVIRONMENT = {"LANG", "PYTHONUNBUFFERED"}


class Strict(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """A section of config.json with the keys that the engine knows."""


class Interface(Strict):
    types: list[str]
    socket: str


class Network(Strict):
    type: str


class Mount(Strict):
    name: str
    description: str
    source: str
    destination: str
    type: str
    options: list[str]
    settable: list[str] = []


class Variable(Strict):
    name: str
    description: str
    value: str
    settable: list[str] = []


class Device(Strict):
    name: str
    description: str
    path: str
    settable: list[str] = []


class Linux(Strict):
    capabilities: list[str]
    devices: list[Device]
    allow_all_devices: bool = False


class Manifest(Strict):
    description: str
    documentation: str
    entrypoint: list[str]
    interface: Interface
    network: Network
    propagated_mount: str
    mounts: list[Mount]
    env: list[Variable]
    linux: Linux
    ipchost: bool = False
    pidhost: bool = False


def read(name: str) -> str:
    return (TREE / name).read_text(encoding="utf-8")


@pytest.fixture
def manifest() -> Manifest:
    return msgspec.json.decode(read("config.json"), type=Manifest)


def table(heading: str) -> dict[str, list[str]]:
    """Return the table below *heading* in docs/install.md: first cell -> the others."""
    section = re.split(r"^#+ ", read("docs/install.md").partition(heading)[2], flags=re.MULTILINE)
    rows = [line.strip("|").split("|") for line in section[0].splitlines() if line.startswith("|")]
    return {
        row[0].replace("`", "").strip(): [cell.replace("`", "").strip() for cell in row[1:]]
        for row in rows[2:]
    }


def test_a_key_unknown_to_the_engine_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="mount"):
        msgspec.json.decode(b'{"mount": []}', type=Manifest)


def test_each_privilege_is_documented_with_its_reason(manifest: Manifest) -> None:
    asked = {
        *manifest.linux.capabilities,
        *(device.path for device in manifest.linux.devices),
        *(f"mount {mount.name}" for mount in manifest.mounts),
    }
    reasons = table("### Privileges of the plugin\n")

    assert set(reasons) == asked
    assert all(len(reason) > 20 for (reason,) in reasons.values())


def test_no_other_privilege_is_requested(manifest: Manifest) -> None:
    assert manifest.network.type == ""
    assert not manifest.ipchost
    assert not manifest.pidhost
    assert not manifest.linux.allow_all_devices


def test_every_mount_is_documented_with_its_source(manifest: Manifest) -> None:
    text = read("docs/install.md")

    for mount in manifest.mounts:
        assert f"`{mount.name}.source` (`{mount.source}`)" in text
        assert mount.settable == ["source"]


def test_each_variable_is_a_setting_of_the_plugin(manifest: Manifest) -> None:
    names = {variable.name for variable in manifest.env}

    assert names - RUNTIME_ENVIRONMENT <= {setting.variable for setting in SETTINGS.values()}


def test_the_environment_fits_the_mounts(manifest: Manifest) -> None:
    settings = Settings.from_environment({entry.name: entry.value for entry in manifest.env})
    destinations = {mount.name: Path(mount.destination) for mount in manifest.mounts}

    assert settings.mount_dir == Path(manifest.propagated_mount)
    assert settings.host_root == destinations["host"]
    assert settings.data_dir == destinations["data"]
    assert settings.host_dir == Path(next(m.source for m in manifest.mounts if m.name == "host"))
    assert settings.log_level == Settings.from_environment({}).log_level


def test_mounts_propagate_from_the_host(manifest: Manifest) -> None:
    for mount in manifest.mounts:
        assert (mount.type, mount.options) == ("bind", ["rbind", "rslave"])


def test_the_socket_is_where_the_plugin_listens(manifest: Manifest) -> None:
    assert manifest.interface.types == ["docker.volumedriver/1.0"]
    assert (
        Path(SETTINGS["socket"].default) == Path("/run/docker/plugins") / manifest.interface.socket
    )
    assert len(f"{ENGINE_SOCKET_DIR}/{manifest.interface.socket}") <= SOCKET_PATH_LIMIT


@pytest.mark.parametrize("managed", [True, False])
def test_the_entrypoint_says_that_the_plugin_is_managed(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, *, managed: bool
) -> None:
    """Without `--managed`, the plugin would not end after a restart of its engine."""
    given: list[bool] = []
    monkeypatch.setattr("plugin.app.run", lambda _, *, managed: given.append(managed))
    arguments = manifest.entrypoint[1:] if managed else ["serve"]

    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert given == [managed]


def test_the_image_has_the_entrypoint_and_the_directories(manifest: Manifest) -> None:
    dockerfile = read("Dockerfile")
    directories = shlex.split(re.findall(r"mkdir -p (.*)", dockerfile)[-1])

    assert msgspec.json.decode(dockerfile.partition("ENTRYPOINT ")[2]) == manifest.entrypoint
    assert manifest.entrypoint[1:] == ["serve", "--managed"]
    assert {*directories} == {
        "/run/docker/plugins",
        manifest.propagated_mount,
        *(mount.destination for mount in manifest.mounts),
    }


def test_the_scripts_make_the_image_that_the_dockerfile_starts_from() -> None:
    assert set(base_images(TREE)) == set(
        re.findall(r"^BASE_IMAGE=(\S+)", read("scripts/say"), re.MULTILINE)
    )


def test_the_dockerfile_builds_with_the_classic_builder() -> None:
    # docker-py supports no other builder.
    assert not re.search(r"# *syntax=|--mount=|<<", read("Dockerfile"))


def test_docker_build_and_the_installer_use_the_same_files() -> None:
    allowed = set(re.findall(r"^!(\S+)", read(".dockerignore"), re.MULTILINE))

    assert allowed == {*CONTEXT, "ca-bundle.crt"} - {"Dockerfile"}
