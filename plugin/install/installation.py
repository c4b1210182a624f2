"""The input of `passfs install`: the wanted plugin, its source tree, and the settings chosen.

The module reads config.json and the engine's description of an installed plugin, but sends no
request to an engine.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from plugin.admin.settings import SETTINGS, Setting, Settings
from plugin.errors import CannotStart, InvalidSetting
from plugin.volumes import database
from plugin.volumes.registry import FILE_NAME, LOCK_NAME

CONTEXT = ("Dockerfile", "LICENSE", "README.md", "passthrough", "plugin", "pyproject.toml")
"""The files of the image build; .dockerignore lists the same for `docker build`."""

BUNDLE = "ca-bundle.crt"
"""Name of the CA bundle in the build's context."""

_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
PLUGIN_NAME = re.compile(
    rf"(?:[\w.-]+(?::\d+)?/)?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?", re.ASCII
)
"""The grammar of an image reference, in the Go module distribution/reference."""

TREE = Path(__file__).resolve().parents[2]
"""The source tree of this module, if it runs from one."""


class InstallationError(Exception):
    """An error that the user of the command can act on; str() is the whole sentence."""


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `passfs install` and `passfs uninstall`."""

    name: str = "passfs"
    tree: Path = TREE
    settings: Mapping[str, str] = {}
    """Field of `Settings` -> text. A setting that is left out keeps its value."""
    ca_bundle: str | None = None
    """PEM file. None means the bundle of the last install; empty means no bundle."""
    force: bool = False


class Progress(Protocol):
    """The display of an install."""

    def step(self, title: str) -> None:
        """Begin the next step."""

    def line(self, text: str) -> None:
        """Show a line of the step."""

    def amount(self, done: int, total: int) -> None:
        """Show that *done* of about *total* bytes are done."""


def read_manifest(tree: Path) -> dict[str, Any]:
    """Return the config.json of *tree*.

    Raises:
        InstallationError: *tree* is not a source tree of this project.
    """
    missing = [name for name in (*CONTEXT, "config.json") if not (tree / name).exists()]
    if missing:
        raise InstallationError(
            f"{tree} is not the source tree of passfs (no {', '.join(missing)}), and the plugin is "
            "built from the source tree. Run `passfs install` from a checkout's .venv (`make up` "
            "makes one), or name the checkout with --tree."
        )
    manifest: dict[str, Any] = json.loads((tree / "config.json").read_text(encoding="utf-8"))
    return manifest


def check_name(name: str) -> None:
    """Refuse a name that engines do not accept for a plugin: they refuse it after the build.

    Raises:
        InstallationError: says what is accepted.
    """
    if not PLUGIN_NAME.fullmatch(name):
        raise InstallationError(
            f"--name '{name}' is not accepted; expected lower-case letters and digits, with single "
            "'.', '_' or '-' between them, such as passfs."
        )


def check_space(directory: str, needed: int) -> None:
    """Refuse a *directory* for temporary files that has less than *needed* bytes free.

    Raises:
        InstallationError: the space is too small, or the directory does not exist.
    """
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise InstallationError(
            f"the installation needs the directory '{directory}': {error.strerror}."
        ) from error
    if free < needed:
        raise InstallationError(
            f"'{directory}' has {free // 10**6} MB free; the installation needs "
            f"{needed // 10**6} MB there while it runs."
        )


def write_context(file: IO[bytes], tree: Path, ca_bundle: Path | None) -> None:
    """Write the files of the image build as a tar archive to *file*, and rewind *file*.

    *ca_bundle* (PEM) becomes BUNDLE, which the Dockerfile uses if it exists.
    """
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in CONTEXT:
            archive.add(tree / name, arcname=name, filter=_plain)
        if ca_bundle is not None:
            archive.add(ca_bundle.resolve(), arcname=BUNDLE, filter=_plain)
    file.seek(0, io.SEEK_SET)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    # Owners differ from checkout to checkout and would defeat the engine's build cache.
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return None if "__pycache__" in member.name else member


def digest(tree: Path) -> str:
    """Return a digest (SHA-256) of the files in *tree* that a plugin is made from.

    All checkouts of one commit have the same digest: it ignores times, owners and the umask. It
    ignores the CA bundle too, because the plugin does not contain the bundle.
    """

    def timeless(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.mtime = 0
        member.mode = 0o755 if member.mode & 0o100 else 0o644
        return _plain(member)

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in (*CONTEXT, "config.json"):
            archive.add(tree / name, arcname=name, filter=timeless)
    return hashlib.sha256(content.getbuffer()).hexdigest()


def base_images(tree: Path) -> list[str]:
    """Return the names of the images that the Dockerfile of *tree* starts from."""
    text = (tree / "Dockerfile").read_text(encoding="utf-8")
    names = re.findall(r"^FROM\s+(\S+)", text, re.MULTILINE)
    return list(dict.fromkeys(names))


def choose_settings(
    manifest: Mapping[str, Any],
    former: Mapping[str, Any] | None,
    wanted: Installation,
    suggested: Mapping[str, str],
    kept: Mapping[str, str],
) -> dict[str, str]:
    """Return the plugin's settings, as `docker plugin set` names them.

    Each setting comes from the first that has it: *wanted*; *kept*, of an install that was cut
    off, or else *former*; *suggested*, for this engine; the default.

    Raises:
        InstallationError: a directory is not absolute, or the plugin would refuse the settings.
    """
    settings = {f"{mount['name']}.source": mount["source"] for mount in manifest["mounts"]}
    settable = {entry["name"] for entry in manifest["env"] if entry.get("settable")}
    settable |= settings.keys()
    present = kept or _settings_of(former)
    settings |= {key: value for key, value in {**suggested, **present}.items() if key in settable}
    for field, text in wanted.settings.items():
        settings |= _as_engine_names(SETTINGS[field], text)
    try:
        Settings.from_environment(settings)
    except InvalidSetting as error:
        raise InstallationError(str(error)) from error
    return settings


def _as_engine_names(setting: Setting, text: str) -> dict[str, str]:
    """Return *text* for all that the flag of *setting* sets, as `docker plugin set` names it."""
    names = [] if setting.fixed else [setting.variable]
    if setting.flag and setting.flag.mount:
        names.append(f"{setting.flag.mount}.source")
        if not text.startswith("/"):
            raise InstallationError(
                f"{setting.flag.name} takes an absolute path on the engine's machine, not '{text}'."
            )
        text = os.path.normpath(text)
    return dict.fromkeys(names, text)


def prepare_directories(settings: Mapping[str, str]) -> None:
    """Make the data directory if it does not exist, and check that the host directory exists.

    The engine, too, refuses a mount with a missing source, but its message is hard to understand.

    Raises:
        InstallationError: names the directory that cannot be used.
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
    try:
        with tempfile.TemporaryFile(dir=data):
            pass
    except OSError as error:
        raise unwritable(str(data), error) from error


def unwritable(data_dir: str, error: OSError) -> InstallationError:
    """Return the error for a data directory that cannot be written to."""
    return InstallationError(
        f"the data directory '{data_dir}' cannot be written to: {error.strerror}; "
        "choose another with --data-dir."
    )


def check_unused(data_dir: str, former: Mapping[str, Any] | None) -> None:
    """Refuse a data directory that another plugin than *former* uses: both cannot run.

    Raises:
        InstallationError: another plugin runs with *data_dir*.
    """
    if former and former["Enabled"] and mount_sources(former)["data.source"] == data_dir:
        return
    try:
        with database.locked(Path(data_dir, LOCK_NAME)):
            pass
    except CannotStart as error:
        raise InstallationError(
            f"another passfs uses the data directory '{data_dir}'; stop it first, or choose "
            "another directory with --data-dir."
        ) from error


def copy_registry(data_dir: str, target: str) -> None:
    """Copy the registry in *data_dir*, without its volumes, to the directory *target*.

    Copy nothing if there is no registry, or if a killed plugin has left a change half done: only a
    plugin may roll it back.

    Raises:
        InstallationError: the registry cannot be read, so no plugin would start with it.
    """
    path = Path(data_dir, FILE_NAME)
    if not path.exists() or Path(f"{path}-journal").exists():
        return
    try:
        database.copy_without_volumes(path, Path(target, FILE_NAME))
    except CannotStart as error:
        raise InstallationError(f"{error}.") from error


def mount_sources(plugin: Mapping[str, Any]) -> dict[str, str]:
    """Return the sources of an inspected plugin's mounts, as `docker plugin set` names them."""
    # From Config and not from Settings: `docker plugin set` writes the source of a mount to Config,
    # and after a restart of the engine only Config has it.
    return {
        f"{mount['Name']}.source": mount["Source"] for mount in plugin["Config"]["Mounts"] or ()
    }


def environment(plugin: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment of an inspected plugin: set variables and defaults."""
    entries = (entry.partition("=") for entry in plugin["Settings"]["Env"] or ())
    return {name: value for name, _, value in entries}


def _settings_of(plugin: Mapping[str, Any] | None) -> dict[str, str]:
    return {} if plugin is None else mount_sources(plugin) | _changed_environment(plugin)


def _changed_environment(plugin: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that were set; all others get the defaults of the new plugin."""
    defaults = {entry["Name"]: entry.get("Value") for entry in plugin["Config"]["Env"] or ()}
    now = environment(plugin)
    # An older passfs read an empty path as the default.
    emptied = {
        setting.variable
        for setting in SETTINGS.values()
        if not (setting.may_be_empty or now.get(setting.variable))
    }
    return {
        name: value
        for name, value in now.items()
        if value != defaults.get(name) and name not in emptied
    }
