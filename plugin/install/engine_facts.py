"""Facts from `docker info`: the kind of engine, and whether the plugin can run in it.

Two kinds of engine are special. With `userns-remap` the engine is root, but the root of containers
is another user of the host. A rootless engine runs in a user namespace, and its root is an
unprivileged user of the host.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plugin.install.installation import InstallationError

FUSE = "/dev/fuse"
DATA_DIR = ".local/share/passfs"
"""Below the home directory, for a rootless engine: file-hierarchy(7)."""


def suggested(info: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that this engine needs in place of the defaults."""
    if is_rootless(info):
        return {"data.source": str(Path.home() / DATA_DIR)}
    owner = remapped_root(info)
    return {"PASSFS_OWNER": owner} if owner else {}


def check(info: Mapping[str, Any], user: int, fuse: str = FUSE) -> None:
    """Refuse an engine in which *user*, the user of the installer, cannot run the plugin.

    Raises:
        InstallationError: has the reason and a remedy.
    """
    if info["OSType"] != "linux":
        raise InstallationError(
            f"this engine runs {info['OSType']} containers; expected an engine on Linux."
        )
    if is_rootless(info):
        _check_rootless(info, user, fuse)
    elif user != 0:
        # Only root can make the data directory and the owners in the exported tree.
        raise InstallationError("this engine is root's: run `passfs install` as root.")
    elif not Path(fuse).exists():
        raise InstallationError(f"there is no {fuse}; load the kernel's module: `modprobe fuse`.")


def check_data_dir(info: Mapping[str, Any], user: int, directory: str) -> None:
    """Refuse a data directory that the plugin of a rootless engine could not write to.

    Raises:
        InstallationError: it belongs to another user than *user*, the user of the engine.
    """
    owner = os.stat(directory).st_uid
    if is_rootless(info) and owner != user:
        raise InstallationError(
            f"the data directory '{directory}' belongs to user {owner}, and this rootless engine "
            f"is user {user}; choose one of your own with --data-dir, such as "
            f"{Path.home() / DATA_DIR}."
        )


def is_rootless(info: Mapping[str, Any]) -> bool:
    """Return whether the engine runs in a user namespace."""
    return _has(info, "rootless")


def remapped_root(info: Mapping[str, Any]) -> str:
    """Return the root of containers as UID:GID of the host; empty if it is the host's root.

    An engine with userns-remap shows both ids only in the name of its directory.
    """
    found = re.search(r"/(\d+)\.(\d+)$", info["DockerRootDir"])
    return ":".join(found.groups()) if found and _has(info, "userns") else ""


def _check_rootless(info: Mapping[str, Any], user: int, fuse: str) -> None:
    try:
        owner = os.stat(info["DockerRootDir"]).st_uid
    except OSError as error:
        raise InstallationError(
            f"this engine is rootless, and its directory {info['DockerRootDir']} cannot be read: "
            f"{error.strerror}. Run `passfs install` on its machine as its user."
        ) from error
    if owner != user:
        raise InstallationError(
            f"this engine is rootless and belongs to user {owner}, and you are user {user}. Run "
            "`passfs install` as that user, with DOCKER_HOST=unix://$XDG_RUNTIME_DIR/docker.sock."
        )
    if not os.access(fuse, os.R_OK | os.W_OK):
        raise InstallationError(
            f"user {user} may not open {fuse} for reading and writing, as the plugin of a "
            f"rootless engine must; run as root: `chmod 0666 {fuse}`."
        )


def _has(info: Mapping[str, Any], word: str) -> bool:
    """Return whether *word* is among the engine's SecurityOptions (`name=rootless`)."""
    return any(
        option.split(",")[0] == f"name={word}" for option in info.get("SecurityOptions") or ()
    )
