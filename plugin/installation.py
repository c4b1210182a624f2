"""What `passfs install` was asked for, the tree it builds from, and the settings that follow.

Knows config.json and what the engine tells about an installed plugin, but does not talk to one.
"""

import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from plugin.errors import InvalidSetting
from plugin.settings import Settings

CONTEXT = ("Dockerfile", "LICENSE", "README.md", "passthrough", "plugin", "pyproject.toml")
"""What enters the image build; .dockerignore says the same to those who build by hand."""

TREE = Path(__file__).resolve().parent.parent
"""The source tree that this module runs from, when it runs from one."""


class InstallationError(Exception):
    """Something the person who runs the command can act on; str() is the whole sentence."""


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What `passfs install` was asked for; None leaves a setting as it was (or at its default)."""

    name: str = "passfs"
    tree: Path = TREE
    host_dir: str | None = None
    data_dir: str | None = None
    allowed_sources: list[str] | None = None
    default_options: str | None = None
    forbidden_options: str | None = None
    log_level: str | None = None
    ca_bundle: Path | None = None
    force: bool = False


def read_manifest(tree: Path) -> dict[str, Any]:
    """The config.json of *tree*.

    Raises:
        InstallationError: *tree* is not a source tree of this project.
    """
    missing = [name for name in (*CONTEXT, "config.json") if not (tree / name).exists()]
    if missing:
        raise InstallationError(
            f"{tree} is not the source tree of passfs (no {', '.join(missing)}). The plugin is "
            "built from that: run `passfs install` from a checkout's .venv (`make up` makes one), "
            "or name the checkout with --tree."
        )
    manifest: dict[str, Any] = json.loads((tree / "config.json").read_text(encoding="utf-8"))
    return manifest


def write_context(file: IO[bytes], tree: Path, ca_bundle: Path | None) -> None:
    """Write what the image build may see as a tar archive to *file*, and rewind that.

    *ca_bundle* (PEM) becomes `ca-bundle.crt`, which the Dockerfile takes if it is there.
    """

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        # Owners differ from checkout to checkout and would defeat the engine's build cache.
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return None if "__pycache__" in member.name else member

    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in CONTEXT:
            archive.add(tree / name, arcname=name, filter=plain)
        if ca_bundle is not None:
            archive.add(ca_bundle.resolve(), arcname="ca-bundle.crt", filter=plain)
    file.seek(0, io.SEEK_SET)


def choose_settings(
    manifest: Mapping[str, Any], former: Mapping[str, Any] | None, wanted: Installation
) -> dict[str, str]:
    """What to configure, as `docker plugin set` names it: wanted over former over default.

    Raises:
        InstallationError: a directory is not absolute, or the plugin would not start with them.
    """
    settings = {f"{mount['name']}.source": mount["source"] for mount in manifest["mounts"]}
    if former is not None:
        settable = {
            entry["name"] for entry in manifest["env"] if entry.get("settable")
        } | settings.keys()
        kept = mount_sources(former) | _changed_environment(former)
        settings |= {key: value for key, value in kept.items() if key in settable}
    if wanted.host_dir is not None:
        settings |= dict.fromkeys(
            ("host.source", "PASSFS_HOST_DIR"), _absolute("--host-dir", wanted.host_dir)
        )
    if wanted.data_dir is not None:
        settings["data.source"] = _absolute("--data-dir", wanted.data_dir)
    if wanted.allowed_sources is not None:
        settings["PASSFS_ALLOWED_SOURCES"] = ":".join(wanted.allowed_sources)
    if wanted.default_options is not None:
        settings["PASSFS_DEFAULT_OPTIONS"] = wanted.default_options
    if wanted.forbidden_options is not None:
        settings["PASSFS_FORBIDDEN_OPTIONS"] = wanted.forbidden_options
    if wanted.log_level is not None:
        settings["PASSFS_LOG_LEVEL"] = wanted.log_level
    try:
        Settings.from_environment(settings)
    except InvalidSetting as error:
        raise InstallationError(str(error)) from error
    return settings


def _absolute(option: str, path: str) -> str:
    if not path.startswith("/"):
        raise InstallationError(
            f"{option} takes an absolute path on the engine's machine, not '{path}'."
        )
    return os.path.normpath(path)


def prepare_directories(settings: Mapping[str, str]) -> None:
    """Make the data directory if there is none, and see that the host directory exists.

    The engine refuses a mount whose source is missing too, in words that only insiders understand.

    Raises:
        InstallationError: one of them cannot serve.
    """
    host, data = settings["host.source"], Path(settings["data.source"])
    if not Path(host).is_dir():
        raise InstallationError(
            f"the host directory '{host}' does not exist or is not a directory; "
            "choose another with --host-dir."
        )
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InstallationError(
            f"the data directory '{data}' cannot be made: {error.strerror}; "
            "choose another with --data-dir."
        ) from error


def mount_sources(plugin: Mapping[str, Any]) -> dict[str, str]:
    """The mounts of an inspected plugin, named as `docker plugin set` names them."""
    # From Config and not from Settings: `docker plugin set` writes a mount's source there, and
    # after a restart of the engine only there.
    return {
        f"{mount['Name']}.source": mount["Source"] for mount in plugin["Config"]["Mounts"] or ()
    }


def environment(plugin: Mapping[str, Any]) -> dict[str, str]:
    """The environment of an inspected plugin, defaults and what was set alike."""
    entries = (entry.partition("=") for entry in plugin["Settings"]["Env"] or ())
    return {name: value for name, _, value in entries}


def _changed_environment(plugin: Mapping[str, Any]) -> dict[str, str]:
    """The variables that someone set; all others follow the defaults of the upgrade."""
    defaults = {entry["Name"]: entry.get("Value") for entry in plugin["Config"]["Env"] or ()}
    now = environment(plugin)
    return {name: value for name, value in now.items() if value != defaults.get(name)}
