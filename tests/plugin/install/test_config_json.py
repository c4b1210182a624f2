"""config.json: the engine checks none of it and drops what it does not know, so this does."""

import re
import shlex
from pathlib import Path

import msgspec
import pytest

from plugin.admin.settings import SETTINGS, Settings
from plugin.install.installation import CONTEXT, TREE

# sockaddr_un.sun_path holds 108 bytes with the final NUL; the engine puts the socket into a
# directory named by the plugin's id of 64 digits.
SOCKET_PATH_LIMIT = 107
ENGINE_SOCKET_DIR = "/run/docker/plugins/" + 64 * "f"
RUNTIME_ENVIRONMENT = {"LANG", "PYTHONUNBUFFERED"}


class Strict(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """A part of config.json as the engine knows it."""


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
    """The rows of the table below a heading of docs/install.md: first cell -> the others."""
    section = re.split(r"^#+ ", read("docs/install.md").partition(heading)[2], flags=re.MULTILINE)
    rows = [line.strip("|").split("|") for line in section[0].splitlines() if line.startswith("|")]
    return {
        row[0].replace("`", "").strip(): [cell.replace("`", "").strip() for cell in row[1:]]
        for row in rows[2:]
    }


def test_a_key_that_the_engine_does_not_know_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="mount"):
        msgspec.json.decode(b'{"mount": []}', type=Manifest)


def test_every_privilege_has_its_reason_and_every_reason_a_privilege(manifest: Manifest) -> None:
    asked = {
        *manifest.linux.capabilities,
        *(device.path for device in manifest.linux.devices),
        *(f"mount {mount.name}" for mount in manifest.mounts),
    }
    reasons = table("### Privileges of the plugin\n")

    assert set(reasons) == asked
    assert all(len(reason) > 20 for (reason,) in reasons.values())


def test_nothing_else_is_asked_for(manifest: Manifest) -> None:
    assert manifest.network.type == ""
    assert not manifest.ipchost
    assert not manifest.pidhost
    assert not manifest.linux.allow_all_devices


def test_every_mount_is_documented_with_its_source(manifest: Manifest) -> None:
    text = read("docs/install.md")

    for mount in manifest.mounts:
        assert f"`{mount.name}.source` (`{mount.source}`)" in text
        assert mount.settable == ["source"]


def test_every_variable_is_one_that_the_plugin_reads(manifest: Manifest) -> None:
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


def test_disks_that_are_mounted_later_appear(manifest: Manifest) -> None:
    for mount in manifest.mounts:
        assert (mount.type, mount.options) == ("bind", ["rbind", "rslave"])


def test_the_socket_is_where_the_plugin_listens(manifest: Manifest) -> None:
    assert manifest.interface.types == ["docker.volumedriver/1.0"]
    assert (
        Path(SETTINGS["socket"].default) == Path("/run/docker/plugins") / manifest.interface.socket
    )
    assert len(f"{ENGINE_SOCKET_DIR}/{manifest.interface.socket}") <= SOCKET_PATH_LIMIT


def test_the_image_has_what_the_plugin_is_started_with(manifest: Manifest) -> None:
    dockerfile = read("Dockerfile")
    directories = shlex.split(re.findall(r"mkdir -p (.*)", dockerfile)[-1])

    assert msgspec.json.decode(dockerfile.partition("ENTRYPOINT ")[2]) == manifest.entrypoint
    assert {*directories} == {
        "/run/docker/plugins",
        manifest.propagated_mount,
        *(mount.destination for mount in manifest.mounts),
    }


def test_the_scripts_make_the_image_that_the_dockerfile_starts_from() -> None:
    bases = set(re.findall(r"^FROM (\S+)", read("Dockerfile"), re.MULTILINE))

    assert bases == set(re.findall(r"^BASE_IMAGE=(\S+)", read("scripts/say"), re.MULTILINE))


def test_the_dockerfile_builds_with_the_classic_builder() -> None:
    # docker-py speaks to no other.
    assert not re.search(r"# *syntax=|--mount=|<<", read("Dockerfile"))


def test_a_build_by_hand_sees_what_the_installer_sends() -> None:
    allowed = set(re.findall(r"^!(\S+)", read(".dockerignore"), re.MULTILINE))

    assert allowed == {*CONTEXT, "ca-bundle.crt"} - {"Dockerfile"}
