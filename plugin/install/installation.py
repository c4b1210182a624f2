"""What `passfs install` was asked for, the tree it builds from, and the settings that follow.

Knows config.json and what the engine tells about an installed plugin, but does not talk to one.
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
"""What enters the image build; .dockerignore says the same to those who build by hand."""

BUNDLE = "ca-bundle.crt"
"""The name of the certificates that builds trust, in the build's context."""

_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
PLUGIN_NAME = re.compile(
    rf"(?:[\w.-]+(?::\d+)?/)?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?", re.ASCII
)
"""The grammar of references in distribution/reference."""

TREE = Path(__file__).resolve().parents[2]
"""The source tree that this module runs from, when it runs from one."""


class InstallationError(Exception):
    """Something the person who runs the command can act on; str() is the whole sentence."""


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What `passfs install` was asked for; None leaves a setting as it was (or at its default)."""

    name: str = "passfs"
    tree: Path = TREE
    settings: Mapping[str, str] = {}
    """Field of `Settings` -> text; a setting that is left out stays as it was."""
    ca_bundle: str | None = None
    """None takes the remembered one; empty forgets that."""
    force: bool = False


class Progress(Protocol):
    """Where the functions here report what they do."""

    def step(self, title: str) -> None:
        """Begin the next step."""

    def line(self, text: str) -> None:
        """Say something within the step."""

    def amount(self, done: int, total: int) -> None:
        """Tell how many bytes of about `total` are done."""


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


def check_name(name: str) -> None:
    """Refuse a name that engines take for no plugin; they would say so only after the build.

    Raises:
        InstallationError: says what is accepted.
    """
    if not PLUGIN_NAME.fullmatch(name):
        raise InstallationError(
            f"--name '{name}' is not accepted; expected lower-case letters and digits, with single "
            "'.', '_' or '-' between them, such as passfs."
        )


def check_space(directory: str, needed: int) -> None:
    """Refuse a *directory* for passing files that has less than *needed* bytes free.

    Raises:
        InstallationError: there is too little, or no such directory.
    """
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise InstallationError(f"'{directory}' is needed: {error.strerror}.") from error
    if free < needed:
        raise InstallationError(
            f"'{directory}' has {free // 10**6} MB free; the installation needs "
            f"{needed // 10**6} MB there meanwhile."
        )


def write_context(file: IO[bytes], tree: Path, ca_bundle: Path | None) -> None:
    """Write what the image build may see as a tar archive to *file*, and rewind that.

    *ca_bundle* (PEM) becomes BUNDLE, which the Dockerfile takes if it is there.
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
    """Return a digest (SHA-256) of what a plugin is made from in *tree*.

    Equal for checkouts of one commit: neither times, owners nor the umask count, nor does the CA
    bundle, of which nothing is left in the plugin.
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
    recalled: Mapping[str, str],
) -> dict[str, str]:
    """What to configure, as `docker plugin set` names it.

    Each from the first that has it: wanted, *recalled* (of an install that was cut off) if there
    are any or else former, *suggested* (for this engine), default.

    Raises:
        InstallationError: a directory is not absolute, or the plugin would not start with them.
    """
    settings = {f"{mount['name']}.source": mount["source"] for mount in manifest["mounts"]}
    settable = {entry["name"] for entry in manifest["env"] if entry.get("settable")}
    settable |= settings.keys()
    kept = recalled or _settings_of(former)
    settings |= {key: value for key, value in {**suggested, **kept}.items() if key in settable}
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
    try:
        with tempfile.TemporaryFile(dir=data):
            pass
    except OSError as error:
        raise unwritable(str(data), error) from error


def unwritable(data_dir: str, error: OSError) -> InstallationError:
    """Return the refusal of a data directory that cannot be written to."""
    return InstallationError(
        f"the data directory '{data_dir}' cannot be written to: {error.strerror}; "
        "choose another with --data-dir."
    )


def check_unused(data_dir: str, former: Mapping[str, Any] | None) -> None:
    """Refuse a data directory that another plugin than *former* has: no second one starts beside.

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
    """Copy the registry in *data_dir*, if there is one, to the directory *target*; no volumes.

    A change that a killed plugin has left half done is taken back by a plugin alone: then no copy.

    Raises:
        InstallationError: it cannot be read, so that no plugin would start with it.
    """
    path = Path(data_dir, FILE_NAME)
    if not path.exists() or Path(f"{path}-journal").exists():
        return
    try:
        database.copy_without_volumes(path, Path(target, FILE_NAME))
    except CannotStart as error:
        raise InstallationError(f"{error}.") from error


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


def _settings_of(plugin: Mapping[str, Any] | None) -> dict[str, str]:
    return {} if plugin is None else mount_sources(plugin) | _changed_environment(plugin)


def _changed_environment(plugin: Mapping[str, Any]) -> dict[str, str]:
    """The variables that someone set; all others follow the defaults of the upgrade."""
    defaults = {entry["Name"]: entry.get("Value") for entry in plugin["Config"]["Env"] or ()}
    now = environment(plugin)
    # An older passfs took an empty path for the default.
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
