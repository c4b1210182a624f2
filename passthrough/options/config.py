"""Config: how a volume is served, and the one contract between the plugin and the file system.

Owns every option's name, meaning, default and refusal. Text comes in through `parse_options`, from
`docker volume create -o` and from `python -m passthrough -o` alike; everything else works with the
typed Config only. `source` is not here: finding a directory is the business of who serves it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from passthrough.linux import kernel_features
from passthrough.options import values
from passthrough.options.choices import (
    Atime,
    CachePolicy,
    InodeFileHandles,
    Locks,
    Passthrough,
    Sandbox,
    Session,
    Squash,
    Submounts,
    Transport,
)
from passthrough.options.vocabulary import ALIASES, MEANINGLESS, canonical, suggestion

__all__ = [
    "ALIASES",
    "FOR_A_NEW_DIRECTORY",
    "LACKING",
    "MEANINGLESS",
    "OPTIONS",
    "Atime",
    "Automatic",
    "CachePolicy",
    "Config",
    "InodeFileHandles",
    "Locks",
    "Option",
    "OptionError",
    "Passthrough",
    "Sandbox",
    "Session",
    "Squash",
    "Submounts",
    "Transport",
    "as_text",
    "automatic",
    "canonical",
    "parse_option",
    "parse_options",
    "session_of",
    "text_of",
]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one source is served, as asked for; decisions.py says what applies.

    Timeouts are in seconds; None leaves them to the cache policy.
    """

    cache: CachePolicy = CachePolicy.AUTO
    entry_timeout: float | None = None
    attr_timeout: float | None = None
    dir_entry_timeout: float | None = None
    dir_attr_timeout: float | None = None
    negative_timeout: float | None = None
    writeback: bool = False
    no_readdir: bool = False
    xattr: bool = True
    use_host_ino: bool = False
    seal_size: bool = False
    allow_direct_io: bool = True
    readonly: bool = False
    suid: bool = False
    dev: bool = False
    exec: bool = True
    atime: Atime = Atime.RELATIME
    inode_file_handles: InodeFileHandles = InodeFileHandles.PREFER
    submounts: Submounts = Submounts.CROSS
    session: Session = Session.AUTO
    transport: Transport = Transport.AUTO
    passthrough: Passthrough = Passthrough.AUTO
    map_uid: tuple[values.Range, ...] = ()
    map_gid: tuple[values.Range, ...] = ()
    squash: Squash = Squash.NONE
    anon_uid: int = 65534
    anon_gid: int = 65534
    no_open: bool = False
    no_opendir: bool = False
    killpriv_v2: bool | None = None
    posix_acl: bool = False
    locks: Locks | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
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
    left_open: str = "from cache"
    """What decides where the value is None."""
    show: Callable[[object], str] = values.as_text
    """Value to a text that *parse* takes."""
    explain: Callable[[str], str] = values.unexplained
    """A text that is not accepted to the end of the sentence that refuses it."""


_ID: Final = "a number from 0 to 4294967294"
_RANGES: Final = "container:host:count, several joined by , or +, without overlap; or none"
_TRUE_FALSE: Final = "true or false"
_TIME: Final = "seconds, or a number with ms, s, m, h or d, up to ten years"

OPTIONS: Final[Mapping[str, Option]] = {
    "cache": Option(
        values.word(CachePolicy),
        "never, metadata, auto or always",
        "what the kernel may answer from its own memory, and the timeouts below unless given",
    ),
    "entry_timeout": Option(values.seconds, _TIME, "how long a name stays known"),
    "attr_timeout": Option(values.seconds, _TIME, "how long attributes stay known"),
    "dir_entry_timeout": Option(values.seconds, _TIME, "entry_timeout for directories"),
    "dir_attr_timeout": Option(values.seconds, _TIME, "attr_timeout for directories"),
    "negative_timeout": Option(values.seconds, _TIME, "how long a free name stays known"),
    "writeback": Option(
        values.boolean,
        _TRUE_FALSE,
        "let the kernel collect writes; others see them later, and theirs are not expected",
    ),
    "no_readdir": Option(
        values.boolean,
        _TRUE_FALSE,
        "list every directory as empty; with a source only beside readonly",
    ),
    "xattr": Option(values.boolean, _TRUE_FALSE, "extended attributes; off speeds up writes"),
    "use_host_ino": Option(
        values.boolean,
        _TRUE_FALSE,
        "number every file by the host's number and a number for its device, the source's included",
    ),
    "seal_size": Option(
        values.boolean, _TRUE_FALSE, "refuse to change any file's size, with EPERM"
    ),
    "allow_direct_io": Option(
        values.boolean,
        _TRUE_FALSE,
        "let O_DIRECT reach the host; off leaves it out and uses the host's cache",
    ),
    "readonly": Option(values.boolean, _TRUE_FALSE, "refuse every change, with EROFS"),
    "suid": Option(values.boolean, _TRUE_FALSE, "let setuid and setgid programs take effect"),
    "dev": Option(values.boolean, _TRUE_FALSE, "let device nodes be opened"),
    "exec": Option(values.boolean, _TRUE_FALSE, "let programs be executed"),
    "atime": Option(
        values.word(Atime),
        "relatime, noatime or strictatime",
        "noatime leaves access times alone; otherwise the host's file system decides",
    ),
    "inode_file_handles": Option(
        values.word(InodeFileHandles),
        "never, prefer or mandatory",
        "hold files by kernel file handles in place of descriptors:"
        " prefer does so when descriptors run short",
    ),
    "submounts": Option(
        values.word(Submounts),
        "cross or hide",
        "what is mounted below the source: part of the volume, or an empty directory each",
    ),
    "session": Option(
        values.word(Session),
        "auto, kernel or libfuse",
        "what speaks FUSE with the kernel; auto takes the best",
    ),
    "transport": Option(
        values.word(Transport),
        "auto, dev or io_uring",
        "how requests come: by /dev/fuse, which auto takes, or by io_uring",
    ),
    "passthrough": Option(
        values.word(Passthrough),
        "auto, on or off",
        "let the kernel read and write the host's files by itself; auto where it can",
    ),
    "map_uid": Option(
        values.ranges, _RANGES, "which users of the containers are which users of the host"
    ),
    "map_gid": Option(values.ranges, _RANGES, "the same for groups"),
    "squash": Option(
        values.word(Squash), "none, root or all", "whose ids are replaced by anon_uid and anon_gid"
    ),
    "anon_uid": Option(values.identifier, _ID, "the user on the host that squashed ones act as"),
    "anon_gid": Option(values.identifier, _ID, "the same for groups"),
    "no_open": Option(
        values.boolean, _TRUE_FALSE, "let the kernel open files by itself; with cache=always only"
    ),
    "no_opendir": Option(values.boolean, _TRUE_FALSE, "let the kernel open directories by itself"),
    "killpriv_v2": Option(
        values.boolean,
        _TRUE_FALSE,
        "clear suid and sgid bits here, which saves the kernel a question before each write",
        "where offered",
    ),
    "posix_acl": Option(values.boolean, _TRUE_FALSE, "honour POSIX ACLs, and inherit default ones"),
    "locks": Option(
        values.word(Locks),
        "host or local",
        "host locks the host's files, which all who use them see; local holds in this volume only",
        "host where offered",
    ),
    "mode": Option(
        values.optional_mode,
        "three or four octal digits, or none",
        "the mode of the volume's own directory when it is made",
        "none",
        values.mode_as_text,
        values.unquoted_mode,
    ),
    "uid": Option(
        values.optional_identifier,
        f"{_ID}, or none",
        "the user on the host that the volume's own directory is made for",
        "none",
    ),
    "gid": Option(values.optional_identifier, f"{_ID}, or none", "the same for the group", "none"),
    "sandbox": Option(
        values.word(Sandbox),
        "namespace or none",
        "namespace confines the serving process to the source; none, for debugging, does not",
    ),
    "fsname": Option(
        values.fsname,
        "1 to 128 letters, digits or _.:/@+-",
        "what df and mount show as the file system's name",
    ),
}

# Linux 6.9 brought FUSE 7.40.
_LEAST_RELEASE: Final = (6, 9)

# What a session cannot do, and why; whoever asks for it is told so before there is a volume.
LACKING: Final[Mapping[Session, Mapping[str, str]]] = {
    Session.LIBFUSE: {
        "no_open": "pyfuse3 gives reads and writes no inode number, only that of an open file",
        "no_opendir": "pyfuse3 gives listings no inode number, only that of an open directory",
        "killpriv_v2": "pyfuse3 does not negotiate HANDLE_KILLPRIV_V2, so that the kernel clears"
        " the bits itself",
        "posix_acl": "pyfuse3 does not negotiate DONT_MASK, so that the kernel applies the umask"
        " where a default ACL should stand in its place",
        "transport": "pyfuse3 reads /dev/fuse itself",
        "passthrough": "pyfuse3 does not negotiate PASSTHROUGH",
    },
}

# What would do instead of what a session lacks, where it is not "false".
_INSTEAD: Final[Mapping[str, str]] = {"transport": "auto or dev", "passthrough": "auto or off"}

# What is given to a directory that is made, and to none that is there already.
FOR_A_NEW_DIRECTORY: Final = ("mode", "uid", "gid")


def parse_options(
    given: Mapping[str, str], *, others: tuple[str, ...] = (), has_source: bool = False
) -> Config:
    """Turn option texts into a Config.

    *others* are names that the caller takes care of itself, for the list of known names only. With
    *has_source* the directory to serve is there already.

    Raises:
        OptionError: an unknown option, a value that is not accepted, an option given twice, or one
            that the session cannot express or that does not go with a source.
    """
    parsed: dict[str, object] = {}
    spelled: dict[str, str] = {}
    for written, text in given.items():
        name, value = parse_option(written, text, others)
        if name in spelled:
            reason = f"is given twice, here as {text!r}"
            accepted = f"one of the two: {spelled[name]} sets the same"
            raise OptionError(written, text, accepted, reason)
        spelled[name] = written
        parsed[name] = value
    config = msgspec.convert(parsed, Config)
    for name, accepted, reason in _refusals(config, has_source=has_source):
        written = spelled[name]
        raise OptionError(written, given[written], accepted, f"{given[written]!r} {reason}")
    return config


def parse_option(written: str, text: str, others: tuple[str, ...] = ()) -> tuple[str, object]:
    """The option that *written*, its name or an alias, sets, and its value; others as above.

    Raises:
        OptionError: there is no such option, or *text* is no value of it.
    """
    name, value = _resolve(written, text, others)
    try:
        return name, OPTIONS[name].parse(value)
    except ValueError:
        accepted = OPTIONS[name].accepts + OPTIONS[name].explain(text)
        raise OptionError(written, text, accepted) from None


def _refusals(config: Config, *, has_source: bool) -> Iterator[tuple[str, str, str]]:
    """Each option that cannot be had though its value is a good one, what would do, and why."""
    for name, why in LACKING.get(session_of(config), {}).items():
        if getattr(config, name) in {True, Passthrough.ON, Transport.IO_URING}:
            accepted = _INSTEAD.get(name, "false")
            yield name, accepted, f"cannot be had with session={config.session}: {why}"
    for name in FOR_A_NEW_DIRECTORY:
        if has_source and getattr(config, name) is not None:
            reason = "is for a directory that is made, and source is there already"
            yield name, "it left out", reason
    if has_source and config.no_readdir and not config.readonly:
        # An engine that sees an empty volume copies the image's files into it (copy-up).
        reason = "hides the files of the source, so that an engine copies an image's over them"
        yield "no_readdir", "readonly beside it, or false", reason


def session_of(config: Config) -> Session:
    """The session that will serve: what `auto` stands for."""
    return automatic().session if config.session is Session.AUTO else config.session


class Automatic(NamedTuple):
    """What `session=auto` stands for on this machine, and why."""

    session: Session
    reason: str


def automatic() -> Automatic:
    """The session that `auto` takes.

    By the release of Linux: what its session cannot express is refused when a volume is created,
    and INIT, with the protocol's number, comes only with a mount.
    """
    release = kernel_features.linux_release()
    text = ".".join(map(str, release))
    if release < _LEAST_RELEASE:
        return Automatic(Session.LIBFUSE, f"Linux {text} is older than 6.9")
    return Automatic(Session.KERNEL, f"Linux {text} has FUSE passthrough and resends requests")


def _resolve(written: str, text: str, others: tuple[str, ...]) -> tuple[str, str]:
    """The option and the value that *written*, an option's name or an alias, stands for."""
    name = canonical(written)
    if name in OPTIONS:
        return name, text
    if name in MEANINGLESS:
        raise OptionError(written, text, "it left out", f"{text!r} is refused: {MEANINGLESS[name]}")
    if name not in ALIASES:
        known = [*OPTIONS, *ALIASES, *others]
        accepted = suggestion(name, known)
        raise OptionError(written, text, accepted, f"is not known, given here as {text!r}")
    if text.strip().lower() not in {"", "true"}:
        raise OptionError(written, text, "no value")
    return ALIASES[name]


def text_of(name: str, value: object) -> str:
    """The value of an option as text; of one that was left open, what decides it."""
    option = OPTIONS[name]
    return option.left_open if value is None else option.show(value)


def as_text(config: Config) -> dict[str, str]:
    """Every option as text."""
    return {name: text_of(name, getattr(config, name)) for name in OPTIONS}
