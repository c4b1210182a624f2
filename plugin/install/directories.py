"""The directories of an install: those that the plugin will use, and those for temporary files."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plugin.errors import CannotStart
from plugin.install.installation import InstallationError
from plugin.install.plugin_settings import mount_sources
from plugin.volumes import database
from plugin.volumes.registry import FILE_NAME, LOCK_NAME


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


def unwritable(data_dir: str, error: OSError) -> InstallationError:
    """Return the error for a data directory that cannot be written to."""
    return InstallationError(
        f"the data directory '{data_dir}' cannot be written to: {error.strerror}; "
        "choose another with --data-dir."
    )
