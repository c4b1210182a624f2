"""Config: how a volume is served, and the one contract between the plugin and the file system.

Owns every option's name, meaning, default and refusal. Text comes in through `parse_options`, from
`docker volume create -o` and from `python -m passthrough -o` alike; everything below works with
the typed Config only. `source` is not here: finding a directory is the business of who serves it.
"""

import difflib
import enum
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec


class CachePolicy(enum.StrEnum):
    """How long the kernel may answer from its own memory; cache.py turns it into numbers."""

    NEVER = "never"
    METADATA = "metadata"
    AUTO = "auto"
    ALWAYS = "always"


class Atime(enum.StrEnum):
    """When reading a file moves its access time, mount(8)."""

    RELATIME = "relatime"
    NOATIME = "noatime"
    STRICTATIME = "strictatime"


class Session(enum.StrEnum):
    """What speaks FUSE with the kernel; `auto` takes the best one that there is."""

    AUTO = "auto"
    LIBFUSE = "libfuse"


class Sandbox(enum.StrEnum):
    """What the process that serves a volume can see and do; sandbox.py."""

    NAMESPACE = "namespace"
    NONE = "none"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one source is served. Timeouts are in seconds; None leaves them to the cache policy."""

    cache: CachePolicy = CachePolicy.AUTO
    entry_timeout: float | None = None
    attr_timeout: float | None = None
    dir_entry_timeout: float | None = None
    dir_attr_timeout: float | None = None
    readonly: bool = False
    suid: bool = False
    dev: bool = False
    exec: bool = True
    atime: Atime = Atime.RELATIME
    session: Session = Session.AUTO
    sandbox: Sandbox = Sandbox.NAMESPACE
    fsname: str = "passfs"


class OptionError(ValueError):
    """An option that cannot be used: which one, the value as the user wrote it, what would do."""

    def __init__(self, option: str, value: str, accepted: str, reason: str = "") -> None:
        self.option = option
        self.value = value
        self.accepted = accepted
        reason = reason or f"{value!r} is not accepted"
        super().__init__(f"option {option!r}: {reason}; expected {accepted}")


class Option(NamedTuple):
    """A row of the table of options."""

    parse: Callable[[str], object]
    """Text to value; raises ValueError."""
    accepts: str
    meaning: str


# A timeout that the kernel keeps as 64-bit seconds; ten years are for ever in the life of a mount.
_LONGEST_S: Final = 10 * 365 * 86_400.0
_UNITS_S: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)", re.ASCII)
_BOOLEANS: Final = {
    "": True,  # a bare `-o readonly` arrives as an empty value
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
# What mount(8) shows as the device: no separators of mount options, /proc/mounts or the terminal.
_FSNAME: Final = re.compile(r"[A-Za-z0-9_.:/@+-]{1,128}")


def _boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.strip().lower()]
    except KeyError:
        raise ValueError(text) from None


def _seconds(text: str) -> float:
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or (seconds := float(match[1]) * _UNITS_S[match[2]]) > _LONGEST_S:
        raise ValueError(text)
    return seconds


def _word(words: type[enum.StrEnum]) -> Callable[[str], enum.StrEnum]:
    def parse(text: str) -> enum.StrEnum:
        return words(text.strip().lower())

    return parse


def _fsname(text: str) -> str:
    if _FSNAME.fullmatch(text) is None:
        raise ValueError(text)
    return text


_TRUE_FALSE: Final = "true or false"
_TIME: Final = "seconds, or a number with ms, s, m, h or d, up to ten years"

OPTIONS: Final[Mapping[str, Option]] = {
    "cache": Option(
        _word(CachePolicy),
        "never, metadata, auto or always",
        "what the kernel may answer from its own memory, and the timeouts below unless given",
    ),
    "entry_timeout": Option(_seconds, _TIME, "how long a name stays known"),
    "attr_timeout": Option(_seconds, _TIME, "how long attributes stay known"),
    "dir_entry_timeout": Option(_seconds, _TIME, "entry_timeout for directories"),
    "dir_attr_timeout": Option(_seconds, _TIME, "attr_timeout for directories"),
    "readonly": Option(_boolean, _TRUE_FALSE, "refuse every change, with EROFS"),
    "suid": Option(_boolean, _TRUE_FALSE, "let setuid and setgid programs take effect"),
    "dev": Option(_boolean, _TRUE_FALSE, "let device nodes be opened"),
    "exec": Option(_boolean, _TRUE_FALSE, "let programs be executed"),
    "atime": Option(
        _word(Atime),
        "relatime, noatime or strictatime",
        "noatime leaves access times alone; otherwise the host's file system decides",
    ),
    "session": Option(
        _word(Session), "auto or libfuse", "what speaks FUSE with the kernel; auto takes the best"
    ),
    "sandbox": Option(
        _word(Sandbox),
        "namespace or none",
        "namespace confines the serving process to the source; none, for debugging, does not",
    ),
    "fsname": Option(
        _fsname,
        "1 to 128 letters, digits or _.:/@+-",
        "what df and mount show as the file system's name",
    ),
}

# The words of mount(8) for the same options: each stands alone and sets one option to one value.
ALIASES: Final[Mapping[str, tuple[str, str]]] = {
    "ro": ("readonly", "true"),
    "rw": ("readonly", "false"),
    "nosuid": ("suid", "false"),
    "nodev": ("dev", "false"),
    "noexec": ("exec", "false"),
    "relatime": ("atime", "relatime"),
    "noatime": ("atime", "noatime"),
    "strictatime": ("atime", "strictatime"),
}


def canonical(name: str) -> str:
    """The one spelling of an option's name: lower case, with underscores."""
    return name.strip().lower().replace("-", "_")


def parse_options(given: Mapping[str, str], *, others: tuple[str, ...] = ()) -> Config:
    """Turn option texts into a Config.

    *others* are names that the caller takes care of itself, for the list of known names only.

    Raises:
        OptionError: an unknown option, a value that is not accepted, or an option given twice.
    """
    values: dict[str, object] = {}
    spelled: dict[str, str] = {}
    for written, text in given.items():
        name, value = _resolve(written, text, others)
        if name in spelled:
            reason = f"is given twice, here as {text!r}"
            accepted = f"one of the two: {spelled[name]} sets the same"
            raise OptionError(written, text, accepted, reason)
        spelled[name] = written
        option = OPTIONS[name]
        try:
            values[name] = option.parse(value)
        except ValueError:
            raise OptionError(written, text, option.accepts) from None
    return msgspec.convert(values, Config)


def _resolve(written: str, text: str, others: tuple[str, ...]) -> tuple[str, str]:
    """The option and the value that *written*, an option's name or an alias, stands for."""
    name = canonical(written)
    if name in OPTIONS:
        return name, text
    if name not in ALIASES:
        known = [*OPTIONS, *ALIASES, *others]
        near = difflib.get_close_matches(name, known, n=1)
        accepted = f"{near[0]}, perhaps" if near else "one of " + ", ".join(sorted(known))
        raise OptionError(written, text, accepted, f"is not known, given here as {text!r}")
    if text.strip().lower() not in {"", "true"}:
        raise OptionError(written, text, "no value")
    return ALIASES[name]


def effective(config: Config) -> dict[str, str]:
    """Every option with the value that applies, as text, for `docker volume inspect`."""
    return {name: _text(getattr(config, name)) for name in OPTIONS}


def _text(value: object) -> str:
    if value is None:
        return "from cache"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        # Down to nanoseconds, as the kernel keeps it, and never in the form 1e+06.
        return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
    return str(value)
