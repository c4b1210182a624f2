"""The environment's settings, read once into `Settings`; nobody else knows their names.

Every default stands here and not in `config.json`, so that a newer plugin has its defaults after an
upgrade, when the engine still holds the environment of the older one.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from plugin.errors import InvalidSetting, quoted

LOG_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

# sockaddr_un.sun_path holds 108 bytes with the final NUL, unix(7).
SOCKET_PATH_LIMIT_BYTES = 107


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the plugin listens, keeps its data and mounts, and how much it logs."""

    socket: Path = Path("/run/docker/plugins/passfs.sock")
    """The Unix socket that dockerd connects to, unless the service manager listens on one; its name
    is the driver's name."""

    data_dir: Path = Path("/var/lib/passfs")
    """Holds the registry and the directories of volumes without a source; survives upgrades."""

    mount_dir: Path = Path("/run/passfs/mounts")
    """Holds one mount point per mounted volume; nothing in it outlives the plugin, but what a
    service manager keeps for the next one."""

    host_root: Path = Path("/")
    """Where the plugin sees *host_dir*; `/host` in the managed plugin."""

    host_dir: Path = Path("/")
    """The directory of the host that sources lie in, by the name that users know."""

    log_level: int = logging.INFO
    """The least severe level that is logged, as in `logging`."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the settings; a variable that is unset or empty has its default.

        Raises:
            InvalidSetting: names the variable, quotes its value and says what is accepted.
        """
        given = {
            variable.field: variable.parse(name, value)
            for name, variable in VARIABLES.items()
            if (value := environment.get(name, ""))
        }
        return msgspec.structs.replace(cls(), **given)


def _path(name: str, value: str) -> Path:
    path = Path(value)
    if not path.is_absolute() or ".." in path.parts or "\0" in value:
        accepted = "an absolute path without '..'"
        raise InvalidSetting(f"{name}={quoted(value)} is not accepted; expected {accepted}")
    return path


def _socket(name: str, value: str) -> Path:
    if len(value.encode(errors="surrogateescape")) > SOCKET_PATH_LIMIT_BYTES:
        accepted = f"a path of at most {SOCKET_PATH_LIMIT_BYTES} bytes"
        raise InvalidSetting(f"{name}={quoted(value)} is not accepted; expected {accepted}")
    return _path(name, value)


def _log_level(name: str, value: str) -> int:
    level = LOG_LEVELS.get(value.lower())
    if level is None:
        accepted = ", ".join(LOG_LEVELS)
        raise InvalidSetting(f"{name}={quoted(value)} is not accepted; expected one of {accepted}")
    return level


class Variable(NamedTuple):
    """One environment variable: the field that it sets and how its text is read."""

    field: str
    parse: Callable[[str, str], Path | int]


VARIABLES: Mapping[str, Variable] = {
    "PASSFS_SOCKET": Variable("socket", _socket),
    "PASSFS_DATA_DIR": Variable("data_dir", _path),
    "PASSFS_MOUNT_DIR": Variable("mount_dir", _path),
    "PASSFS_HOST_ROOT": Variable("host_root", _path),
    "PASSFS_HOST_DIR": Variable("host_dir", _path),
    "PASSFS_LOG_LEVEL": Variable("log_level", _log_level),
}
