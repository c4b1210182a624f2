"""The settings: one table of what an administrator can set, and the values that a plugin runs with.

The table is the source of the environment variables, the `env` section of config.json, the options
of `passfs install`, and the table in docs/install.md. `python -m tests.support.tools.settings`
writes config.json and docs/install.md, and a test compares them.

The plugin takes a default from this table, and not from config.json: after `docker plugin upgrade`
the engine still holds the environment of the older plugin.
"""

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

import msgspec

from passthrough.options.choices import LogLevel
from passthrough.options.sessions import FIRST_KERNEL_SESSION, Release
from plugin.admin import address
from plugin.admin.address import SOCKET_PATH_LIMIT_BYTES, Address
from plugin.admin.policy import Ban, Policy, default_options, forbidden_options
from plugin.errors import InvalidOption, InvalidSetting, quoted

T = TypeVar("T")

LAST_ID: Final = 4294967294
"""4294967295 means "no change" to chown(2)."""


class LogFormat(StrEnum):
    """The values of PASSFS_LOG_FORMAT."""

    TEXT = "text"
    JSON = "json"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The values of all settings; SETTINGS has a row for each field, with its meaning."""

    socket: Path
    data_dir: Path
    """Survives upgrades."""
    mount_dir: Path
    """Holds one mount point for each mounted volume. If a service manager keeps the descriptors of
    the mounts, they outlive the plugin."""
    host_dir: Path
    """By the name that users know."""
    host_root: Path
    allowed_sources: tuple[Path, ...]
    """By the names that users know; empty allows all of *host_dir*."""
    default_options: Mapping[str, str]
    """Option -> text."""
    forbidden_options: tuple[Ban, ...]
    owner: tuple[int, int]
    """Uid and gid."""
    log_level: int
    """As in `logging`."""
    log_format: LogFormat
    metrics: Address | None
    """None if there are none."""

    def policy(self, release: Release) -> Policy:
        """Return the administrator's decisions about options, for Linux *release*.

        Raises:
            InvalidSetting: on *release* a default option is not accepted, or a ban forbids a
                default.
        """
        policy = Policy(release, self.default_options, self.forbidden_options)
        try:
            ban = policy.contradiction()
        except InvalidOption as error:
            text = quoted(",".join(f"{name}={value}" for name, value in policy.defaults.items()))
            raise InvalidSetting(
                f"PASSFS_DEFAULT_OPTIONS={text} is not accepted: {error}"
            ) from error
        if ban is not None:
            accepted = (
                f"another default: set {ban.option} in PASSFS_DEFAULT_OPTIONS to a value that is"
                " not forbidden"
            )
            raise _refused("PASSFS_FORBIDDEN_OPTIONS", str(ban), accepted)
        return policy

    def check_managed(self) -> None:
        """Refuse settings that a managed plugin has no use for.

        Raises:
            InvalidSetting: no process of the host reaches the metrics.
        """
        if self.metrics is None:
            return
        if not isinstance(self.metrics, Path) or not self.metrics.is_relative_to(self.data_dir):
            accepted = (
                f"a Unix socket in PASSFS_DATA_DIR={quoted(str(self.data_dir))}, such as"
                f" {self.data_dir / 'metrics.sock'}: a managed plugin has no network, and the host"
                " sees no other directory of the plugin"
            )
            raise _refused("PASSFS_METRICS", str(self.metrics), accepted)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the settings; a variable that is unset has its default.

        An empty variable has its default as well, unless it is a path.

        Raises:
            InvalidSetting: names the variable, quotes its value and says what is accepted; or two
                variables contradict each other.
        """
        values: dict[str, Any] = {
            setting.field: setting.read(environment) for setting in SETTINGS.values()
        }
        settings = cls(**values)
        _check(settings)
        return settings


class Flag(NamedTuple):
    """The option of `passfs install` that changes a setting."""

    name: str
    metavar: str
    mount: str = ""
    """A mount in config.json: the option sets its source as well, to an absolute path."""
    separator: str = ""
    """Joins the values of an option that can be repeated; empty if it takes one value."""
    kind: type[str] = str
    """An enumeration if the command line accepts nothing else."""
    meaning: str = ""
    """Replaces the meaning of the setting in `passfs install --help`."""

    def text(self, value: str | list[str]) -> str:
        """Return the text of the setting for a value from the command line."""
        return self.separator.join(value) if isinstance(value, list) else str(value)


class Setting(NamedTuple):
    """A row of the table of settings."""

    field: str
    """The name in `Settings`, and in upper case behind PASSFS_ the environment variable."""
    parse: Callable[[str, str], object]
    """Variable and text to value; raises InvalidSetting."""
    default: str
    """The default text. If it is empty, *if_empty* describes its meaning in the documents."""
    meaning: str
    if_empty: str = ""
    may_be_empty: bool = True
    """If true, an empty text means the default: `docker plugin set NAME=` can empty a variable, but
    not unset it."""
    in_plugin: bool = True
    """False if the managed plugin does not have the setting."""
    fixed: str = ""
    """The value in the managed plugin if it belongs to a mount in config.json, and cannot be set
    there."""
    flag: Flag | None = None

    @property
    def variable(self) -> str:
        """The name of the environment variable."""
        return f"PASSFS_{self.field.upper()}"

    def read(self, environment: Mapping[str, str]) -> object:
        """Return the value that *environment* gives to the setting, or the default.

        Raises:
            InvalidSetting: the text is not accepted.
        """
        text = environment.get(self.variable, self.default)
        return self.parse(self.variable, text or (self.default if self.may_be_empty else text))


def _check(settings: Settings) -> None:
    """Refuse settings that contradict each other."""
    for source in settings.allowed_sources:
        if not source.is_relative_to(settings.host_dir):
            accepted = f"directories in PASSFS_HOST_DIR={quoted(str(settings.host_dir))}"
            raise _refused("PASSFS_ALLOWED_SOURCES", str(source), accepted)
    settings.policy(FIRST_KERNEL_SESSION)  # refuses defaults that are forbidden


def _refused(name: str, value: str, accepted: str) -> InvalidSetting:
    return InvalidSetting(f"{name}={quoted(value)} is not accepted; expected {accepted}")


def _path(name: str, value: str) -> Path:
    path = Path(value)
    if not path.is_absolute() or ".." in path.parts or "\0" in value:
        raise _refused(name, value, "an absolute path without '..'")
    return path


def _mount_dir(name: str, value: str) -> Path:
    """Read the directory of mount points, which Get and Mount return in JSON."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _refused(name, value, "a path in UTF-8") from error
    return _path(name, value)


def _paths(name: str, value: str) -> tuple[Path, ...]:
    # An empty part is refused: `:` must not be read as no path at all, which allows every source.
    return tuple(_path(name, part) for part in value.split(":")) if value else ()


def _options(parse: Callable[[str], T]) -> Callable[[str, str], T]:
    """Return a parser of options; its refusals name the option and the reason."""

    def read(name: str, value: str) -> T:
        try:
            return parse(value)
        except InvalidOption as error:
            raise InvalidSetting(f"{name}={quoted(value)} is not accepted: {error}") from error

    return read


def _socket(name: str, value: str) -> Path:
    if not address.fits(value):
        raise _refused(name, value, f"a path of at most {SOCKET_PATH_LIMIT_BYTES} bytes")
    return _path(name, value)


def _owner(name: str, value: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", value or "0:0", re.ASCII)
    ids = tuple(map(int, found.groups())) if found else ()
    if len(ids) != 2 or max(ids) > LAST_ID:  # noqa: PLR2004
        raise _refused(name, value, f"UID:GID, two numbers from 0 to {LAST_ID}")
    return ids[0], ids[1]


def _log_level(name: str, value: str) -> int:
    try:
        return LogLevel(value.lower()).number
    except ValueError as error:
        raise _refused(name, value, f"one of {', '.join(LogLevel)}") from error


def _log_format(name: str, value: str) -> LogFormat:
    try:
        return LogFormat(value.lower())
    except ValueError as error:
        raise _refused(name, value, f"one of {', '.join(LogFormat)}") from error


def _metrics(name: str, value: str) -> Address | None:
    try:
        return address.parse(value) if value else None
    except ValueError as error:
        raise _refused(name, value, address.EXPECTED) from error


_ROWS: Final = (
    Setting(
        "socket",
        _socket,
        "/run/docker/plugins/passfs.sock",
        "Unix socket of the plugin, unless systemd listens on it; the file's name is the driver's "
        "name",
        may_be_empty=False,
        in_plugin=False,
    ),
    Setting(
        "data_dir",
        _path,
        "/var/lib/passfs",
        "Directory of the registry, and of the data of volumes without a source",
        may_be_empty=False,
        fixed="/var/lib/passfs",
        flag=Flag("--data-dir", "DIR", mount="data"),
    ),
    Setting(
        "mount_dir",
        _mount_dir,
        "/run/passfs/mounts",
        "Directory in which the plugin mounts volumes; a path in UTF-8",
        may_be_empty=False,
        fixed="/mnt/volumes",
    ),
    Setting(
        "host_dir",
        _path,
        "/",
        "Host directory below which the source of a volume may lie",
        may_be_empty=False,
        flag=Flag("--host-dir", "DIR", mount="host"),
    ),
    Setting(
        "host_root",
        _path,
        "/",
        "Directory at which the plugin sees PASSFS_HOST_DIR",
        may_be_empty=False,
        fixed="/host",
    ),
    Setting(
        "allowed_sources",
        _paths,
        "",
        "Directories in PASSFS_HOST_DIR that sources may lie in, separated by ':'",
        "all of PASSFS_HOST_DIR",
        flag=Flag(
            *("--allow-source", "DIR"),
            separator=":",
            meaning="Directory that sources may lie in; the option can be repeated",
        ),
    ),
    Setting(
        "default_options",
        _options(default_options),
        "",
        "Options of volumes that do not give them, such as cache=never,readonly",
        "none",
        flag=Flag("--default-options", "OPTIONS"),
    ),
    Setting(
        "forbidden_options",
        _options(forbidden_options),
        "",
        "Options forbidden to volumes, such as suid,sandbox=none: a name forbids all values but "
        "the default, NAME=VALUE forbids one value",
        "none",
        flag=Flag("--forbid-options", "OPTIONS"),
    ),
    Setting(
        "owner",
        _owner,
        "",
        "Owner of new volumes without a source, as UID:GID of the host; with userns-remap, the "
        "root of containers",
        "0:0",
    ),
    Setting(
        "log_level",
        _log_level,
        "info",
        "Least severe level that is logged: debug, info, warning or error",
        flag=Flag("--log-level", "LEVEL", kind=LogLevel),
    ),
    Setting(
        "log_format",
        _log_format,
        "text",
        "Format of the log: text, or json with an object on each line",
        flag=Flag("--log-format", "FORMAT", kind=LogFormat),
    ),
    Setting(
        "metrics",
        _metrics,
        "",
        "Address of the metrics: the path of a Unix socket, or IP:PORT; a managed plugin takes a "
        "socket in PASSFS_DATA_DIR",
        "no metrics",
        flag=Flag("--metrics", "ADDRESS"),
    ),
)

SETTINGS: Final[Mapping[str, Setting]] = {row.field: row for row in _ROWS}
