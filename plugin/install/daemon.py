"""What an engine says of itself (`docker info`), and whether it can take the plugin.

Two kinds differ from the usual one. With `userns-remap` the root of containers is another user of
the host than the engine's. A rootless engine runs in a user namespace, and its root is a user of
the host without privileges.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plugin.install.installation import InstallationError

FUSE = "/dev/fuse"
DATA_DIR = ".local/share/passfs"
"""Below the home directory, for a rootless engine; file-hierarchy(7)."""


def suggested(info: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that fit this engine better than the defaults, for `choose_settings`."""
    if is_rootless(info):
        return {"data.source": str(Path.home() / DATA_DIR)}
    owner = remapped_root(info)
    return {"PASSFS_OWNER": owner} if owner else {}


def check(info: Mapping[str, Any], user: int, fuse: str = FUSE) -> None:
    """Refuse what cannot succeed for *user*, who runs the installer.

    Raises:
        InstallationError: says what is in the way, and what to do.
    """
    if info["OSType"] != "linux":
        raise InstallationError(
            f"this engine runs {info['OSType']} containers; expected an engine on Linux."
        )
    if is_rootless(info):
        _check_rootless(info, user, fuse)
    elif user != 0:
        # The data directory and the owners in the exported tree are root's.
        raise InstallationError("run this as root")
    elif not Path(fuse).exists():
        raise InstallationError(f"there is no {fuse}; load the kernel's module: `modprobe fuse`.")


def check_data_dir(info: Mapping[str, Any], user: int, directory: str) -> None:
    """Refuse a data directory in which a rootless engine's plugin could not write.

    Raises:
        InstallationError: it belongs to another user than *user*, who runs engine and installer.
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

    An engine with userns-remap has no other place to say so than the name of its directory.
    """
    found = re.search(r"/(\d+)\.(\d+)$", info["DockerRootDir"])
    return ":".join(found.groups()) if found and _has(info, "userns") else ""


def _check_rootless(info: Mapping[str, Any], user: int, fuse: str) -> None:
    try:
        owner = os.stat(info["DockerRootDir"]).st_uid
    except OSError as error:
        raise InstallationError(
            f"this engine is rootless, and its directory {info['DockerRootDir']} cannot be seen: "
            f"{error.strerror}. Run `passfs install` on its machine as its user."
        ) from error
    if owner != user:
        raise InstallationError(
            f"this engine is rootless and belongs to user {owner}, and you are user {user}. Run "
            "`passfs install` as that user, with DOCKER_HOST=unix://$XDG_RUNTIME_DIR/docker.sock."
        )
    if not os.access(fuse, os.R_OK | os.W_OK):
        raise InstallationError(
            f"user {user} may not open {fuse} for reading and writing, which the plugin of a "
            f"rootless engine has to; as root: `chmod 0666 {fuse}`."
        )


def _has(info: Mapping[str, Any], word: str) -> bool:
    """Return whether *word* is among the engine's SecurityOptions (`name=rootless`)."""
    return any(
        option.split(",")[0] == f"name={word}" for option in info.get("SecurityOptions") or ()
    )
