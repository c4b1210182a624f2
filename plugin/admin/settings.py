"""The environment's settings, read once into `Settings`; nobody else knows their names.

Every default stands here and not in `config.json`, so that a newer plugin has its defaults after an
upgrade, when the engine still holds the environment of the older one.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import msgspec

from plugin.admin.policy import Ban, Policy, default_options, forbidden_options
from plugin.errors import InvalidOption, InvalidSetting, quoted

LOG_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

T = TypeVar("T")

# sockaddr_un.sun_path holds 108 bytes with the final NUL, unix(7).
SOCKET_PATH_LIMIT_BYTES = 107
# The next one is no id, chown(2).
LAST_ID = 4294967294


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

    allowed_sources: tuple[Path, ...] = ()
    """The directories in *host_dir* that sources lie in, as users know them; none for all of it."""

    default_options: Mapping[str, str] = {}
    """Option -> text, for volumes that do not give it."""

    forbidden_options: tuple[Ban, ...] = ()
    """What volumes may not give."""

    owner: tuple[int, int] = (0, 0)
    """The root of containers, as user and group of the host; other than root where the engine
    remaps users. It owns the directory of a new volume without a source."""

    log_level: int = logging.INFO
    """The least severe level that is logged, as in `logging`."""

    @property
    def policy(self) -> Policy:
        """What the administrator has decided about options."""
        return Policy(self.default_options, self.forbidden_options)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the settings; a variable that is unset has its default.

        So has one that is empty, unless it names a path: no path is meant by nothing.

        Raises:
            InvalidSetting: names the variable, quotes its value and says what is accepted; or two
                variables do not go together.
        """
        given = {
            variable.field: variable.parse(name, value)
            for name, variable in VARIABLES.items()
            if (value := environment.get(name)) or (value == "" and not variable.may_be_empty)
        }
        settings = msgspec.structs.replace(cls(), **given)
        _check(settings)
        return settings


def _check(settings: Settings) -> None:
    """Refuse what cannot be together."""
    for source in settings.allowed_sources:
        if not source.is_relative_to(settings.host_dir):
            accepted = f"directories in PASSFS_HOST_DIR={quoted(str(settings.host_dir))}"
            raise _refused("PASSFS_ALLOWED_SOURCES", str(source), accepted)
    if ban := settings.policy.contradiction():
        accepted = f"PASSFS_DEFAULT_OPTIONS with another {ban.option} beside it"
        raise _refused("PASSFS_FORBIDDEN_OPTIONS", str(ban), accepted)


def _refused(name: str, value: str, accepted: str) -> InvalidSetting:
    return InvalidSetting(f"{name}={quoted(value)} is not accepted; expected {accepted}")


def _path(name: str, value: str) -> Path:
    path = Path(value)
    if not path.is_absolute() or ".." in path.parts or "\0" in value:
        raise _refused(name, value, "an absolute path without '..'")
    return path


def _mount_dir(name: str, value: str) -> Path:
    """Read the directory of mount points, which Get and Mount tell in JSON."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _refused(name, value, "a path in UTF-8") from error
    return _path(name, value)


def _paths(name: str, value: str) -> tuple[Path, ...]:
    # An empty part is refused too: `:` must not come to nothing, which allows everything.
    return tuple(_path(name, part) for part in value.split(":"))


def _options(parse: Callable[[str], T]) -> Callable[[str, str], T]:
    """A reader of options, whose refusals say which of them and why."""

    def read(name: str, value: str) -> T:
        try:
            return parse(value)
        except InvalidOption as error:
            raise InvalidSetting(f"{name}={quoted(value)} is not accepted: {error}") from error

    return read


def _socket(name: str, value: str) -> Path:
    if len(value.encode(errors="surrogateescape")) > SOCKET_PATH_LIMIT_BYTES:
        raise _refused(name, value, f"a path of at most {SOCKET_PATH_LIMIT_BYTES} bytes")
    return _path(name, value)


def _owner(name: str, value: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", value, re.ASCII)
    ids = tuple(map(int, found.groups())) if found else ()
    if len(ids) != 2 or max(ids) > LAST_ID:  # noqa: PLR2004
        raise _refused(name, value, f"UID:GID, two numbers from 0 to {LAST_ID}")
    return ids[0], ids[1]


def _log_level(name: str, value: str) -> int:
    level = LOG_LEVELS.get(value.lower())
    if level is None:
        raise _refused(name, value, f"one of {', '.join(LOG_LEVELS)}")
    return level


class Variable(NamedTuple):
    """One environment variable: the field that it sets and how its text is read."""

    field: str
    parse: Callable[[str, str], object]
    may_be_empty: bool = True
    """Whether nothing means the default: `docker plugin set NAME=` can only empty a variable."""


VARIABLES: Mapping[str, Variable] = {
    "PASSFS_SOCKET": Variable("socket", _socket, may_be_empty=False),
    "PASSFS_DATA_DIR": Variable("data_dir", _path, may_be_empty=False),
    "PASSFS_MOUNT_DIR": Variable("mount_dir", _mount_dir, may_be_empty=False),
    "PASSFS_HOST_ROOT": Variable("host_root", _path, may_be_empty=False),
    "PASSFS_HOST_DIR": Variable("host_dir", _path, may_be_empty=False),
    "PASSFS_ALLOWED_SOURCES": Variable("allowed_sources", _paths),
    "PASSFS_DEFAULT_OPTIONS": Variable("default_options", _options(default_options)),
    "PASSFS_FORBIDDEN_OPTIONS": Variable("forbidden_options", _options(forbidden_options)),
    "PASSFS_OWNER": Variable("owner", _owner),
    "PASSFS_LOG_LEVEL": Variable("log_level", _log_level),
}
