"""The table of options: the name, type, default, text form and meaning of each.

The option `source` is not in the table: the plugin finds the directory to serve.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final, NamedTuple, get_args

import msgspec

from passthrough.options import values
from passthrough.options.choices import (
    Atime,
    CachePolicy,
    InodeFileHandles,
    Locks,
    LogLevel,
    Passthrough,
    Sandbox,
    SessionKind,
    Squash,
    Standby,
    Submounts,
    Transport,
)


class Values(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value for each option; the defaults are those of a volume without options.

    Timeouts are in seconds. If a value is None, `resolve` derives it from `cache` or the session.
    For `mode`, `uid` and `gid`, None means no change, and for `subpath` all of the source. For
    `anon_uid` and `anon_gid` owner.py decides, and for `log_level` the plugin's setting.
    """

    subpath: str | None = None
    create: bool = False
    owner: values.Owner | None = None
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
    diratime: bool = True
    inode_file_handles: InodeFileHandles = InodeFileHandles.PREFER
    submounts: Submounts = Submounts.CROSS
    session: SessionKind = SessionKind.AUTO
    transport: Transport = Transport.AUTO
    standby: Standby | None = None
    passthrough: Passthrough = Passthrough.AUTO
    map_uid: tuple[values.Range, ...] = ()
    map_gid: tuple[values.Range, ...] = ()
    squash: Squash = Squash.NONE
    anon_uid: int | None = None
    anon_gid: int | None = None
    idmap: bool = False
    no_open: bool = False
    no_opendir: bool = False
    killpriv_v2: bool | None = None
    posix_acl: bool | None = None
    locks: Locks | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    sandbox: Sandbox = Sandbox.NAMESPACE
    fsname: str = "passfs"
    log_level: LogLevel | None = None


class Requested(Values, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a volume as its user gave them; conflicts are undecided."""


class OptionError(ValueError):
    """An option that is refused: its name and value as the user wrote them, and valid values."""

    def __init__(self, option: str, value: str, accepted: str, reason: str = "") -> None:
        self.option = option
        self.value = value
        self.accepted = accepted
        reason = reason or f"{value!r} is not accepted"
        super().__init__(f"option {option!r}: {reason}; expected {accepted}")


class Option(NamedTuple):
    """A row of the table."""

    parse: Callable[[str], object]
    """Turns a text into a value; raises ValueError."""
    accepts: str
    """The accepted texts, for the refusal of another one."""
    meaning: str
    left_open: str = "from cache"
    """The text that stands for None: the source of the value."""
    show: Callable[[object], str] = values.as_text
    """Turns a value into a text that *parse* accepts."""
    explain: Callable[[str], str] = values.unexplained
    """Return the end of the sentence that refuses a text."""


_ID: Final = "a number from 0 to 4294967294, or the name of"
_USER: Final = f"{_ID} a user of the host"
_GROUP: Final = f"{_ID} a group of the host"
_RANGES: Final = "container:host:count, several joined by , or +, without overlap; or none"
_TRUE_FALSE: Final = "true or false"
_TIME: Final = "seconds, or a number with ms, s, m, h or d, up to ten years"

OPTIONS: Final[Mapping[str, Option]] = {
    "subpath": Option(
        values.optional_subpath,
        "a path below the source, without '..', or none",
        "the directory in the source to serve; no symbolic link in it leads out of the source",
        "none",
    ),
    "create": Option(
        values.boolean,
        _TRUE_FALSE,
        "make the directory to serve when the volume is created, if it is missing and its parent"
        " exists",
    ),
    "owner": Option(
        values.optional_owner,
        "UID[:GID] or NAME[:GROUP], with names of the host; empty for 0:0; or none",
        "show every file as this user's of the containers, and let all callers act as the user of"
        " the host who owns the source",
        "none",
        explain=values.only_at_create,
    ),
    "cache": Option(
        values.word(CachePolicy),
        "never, metadata, auto or always",
        "what the kernel may answer from its cache; sets each timeout below that is not given",
    ),
    "entry_timeout": Option(values.seconds, _TIME, "how long the kernel caches a name"),
    "attr_timeout": Option(values.seconds, _TIME, "how long the kernel caches attributes"),
    "dir_entry_timeout": Option(values.seconds, _TIME, "entry_timeout for directories"),
    "dir_attr_timeout": Option(values.seconds, _TIME, "attr_timeout for directories"),
    "negative_timeout": Option(
        values.seconds, _TIME, "how long the kernel caches that a name does not exist"
    ),
    "writeback": Option(
        values.boolean,
        _TRUE_FALSE,
        "buffer writes in the kernel; do not use it if anything else writes to the source",
    ),
    "no_readdir": Option(
        values.boolean,
        _TRUE_FALSE,
        "list every directory as empty; with a source it is refused without readonly",
    ),
    "xattr": Option(values.boolean, _TRUE_FALSE, "extended attributes; false speeds up writes"),
    "use_host_ino": Option(
        values.boolean,
        _TRUE_FALSE,
        "combine the host's inode number with a number for the mount for all files;"
        " if false, only for files outside the source's own mount",
    ),
    "seal_size": Option(
        values.boolean, _TRUE_FALSE, "refuse to change any file's size, with EPERM"
    ),
    "allow_direct_io": Option(
        values.boolean,
        _TRUE_FALSE,
        "pass O_DIRECT on to the host; false ignores it and uses the host's cache",
    ),
    "readonly": Option(values.boolean, _TRUE_FALSE, "refuse every change, with EROFS"),
    "suid": Option(values.boolean, _TRUE_FALSE, "let setuid and setgid programs take effect"),
    "dev": Option(values.boolean, _TRUE_FALSE, "let device nodes be opened"),
    "exec": Option(values.boolean, _TRUE_FALSE, "let programs be executed"),
    "atime": Option(
        values.word(Atime),
        "relatime, noatime or strictatime",
        "the updates of access times: as the host's mount does them, never, or at each read",
    ),
    "diratime": Option(
        values.boolean, _TRUE_FALSE, "update access times of directories as those of files"
    ),
    "inode_file_handles": Option(
        values.word(InodeFileHandles),
        "never, prefer or mandatory",
        "hold files by kernel file handles in place of descriptors;"
        " prefer does so when descriptors run short",
    ),
    "submounts": Option(
        values.word(Submounts),
        "cross or hide",
        "show file systems mounted below the source, or an empty directory for each",
    ),
    "session": Option(
        values.word(SessionKind),
        "auto, kernel or libfuse",
        "the implementation of the FUSE protocol; auto takes the best that the kernel allows",
    ),
    "transport": Option(
        values.word(Transport),
        "auto, dev or io_uring",
        "the channel of requests: /dev/fuse, which auto takes, or io_uring",
    ),
    "standby": Option(
        values.word(Standby),
        "on or off",
        "keep two processes that make the worker anew when it dies, so that no container notices",
        "on with session=kernel, except over io_uring",
    ),
    "passthrough": Option(
        values.word(Passthrough),
        "auto, on or off",
        "let the kernel read and write the host's files by itself; auto does so where possible",
    ),
    "map_uid": Option(
        values.ranges,
        _RANGES,
        "ranges of callers' ids (with userns-remap, as the host sees them), and the ids of the"
        " host that they act as",
    ),
    "map_gid": Option(values.ranges, _RANGES, "the same for groups"),
    "squash": Option(
        values.word(Squash), "none, root or all", "the callers that act as anon_uid and anon_gid"
    ),
    "anon_uid": Option(
        values.identifier,
        _USER,
        "the user of the host that squashed callers act as",
        "65534, or with owner the source's owner",
        explain=values.only_at_create,
    ),
    "anon_gid": Option(
        values.identifier,
        _GROUP,
        "the same for groups",
        "65534, or with owner the source's group",
        explain=values.only_at_create,
    ),
    "idmap": Option(
        values.boolean,
        _TRUE_FALSE,
        "let the volume's mount be idmapped, as engines do for user namespaces",
    ),
    "no_open": Option(
        values.boolean,
        _TRUE_FALSE,
        "let the kernel open files without a request; every policy but cache=always turns it off",
    ),
    "no_opendir": Option(
        values.boolean, _TRUE_FALSE, "let the kernel open directories without a request"
    ),
    "killpriv_v2": Option(
        values.boolean,
        _TRUE_FALSE,
        "clear suid and sgid bits in the worker, which saves a request before each write",
        "true with session=kernel",
    ),
    "posix_acl": Option(
        values.boolean,
        _TRUE_FALSE,
        "apply POSIX ACLs, and inherit default ACLs",
        "true with session=kernel",
    ),
    "locks": Option(
        values.word(Locks),
        "host or local",
        "host locks the host's files, for all programs on the host; local locks within the volume",
        "host with a source and session=kernel, else local",
    ),
    "mode": Option(
        values.optional_mode,
        "three or four octal digits, or none",
        "the mode of a new directory: of a volume without a source, or with create",
        "none",
        values.mode_as_text,
        values.unquoted_mode,
    ),
    "uid": Option(
        values.optional_identifier,
        f"{_USER}, or none",
        "the owner on the host of a new directory, as for mode",
        "none",
        explain=values.only_at_create,
    ),
    "gid": Option(
        values.optional_identifier,
        f"{_GROUP}, or none",
        "the same for the group",
        "none",
        explain=values.only_at_create,
    ),
    "sandbox": Option(
        values.word(Sandbox),
        "namespace or none",
        "namespace confines the worker to the source; none, for debugging, does not",
    ),
    "fsname": Option(
        values.fsname,
        "1 to 128 letters, digits or _.:/@+-",
        "the name of the file system in df and mount",
    ),
    "log_level": Option(
        values.word_or_auto(LogLevel),
        "auto, debug, info, warning or error",
        "the least severe lines that the volume's processes log; auto follows the plugin's setting",
        values.AUTO,
    ),
}


def words_of(name: str) -> tuple[str, ...]:
    """Return the words that the option *name* accepts; empty if other texts are its values."""
    kind = Values.__annotations__[name]
    for each in get_args(kind) or (kind,):
        if each is bool:
            return ("true", "false")
        if isinstance(each, type) and issubclass(each, StrEnum):
            return (*((values.AUTO,) if OPTIONS[name].left_open == values.AUTO else ()), *each)
    return ()


def text_of(name: str, value: object) -> str:
    """Return *value* of the option *name* as text, or for None the source of the value."""
    option = OPTIONS[name]
    return option.left_open if value is None else option.show(value)


def as_text(options: Values) -> dict[str, str]:
    """Return every option as text."""
    return {name: text_of(name, getattr(options, name)) for name in OPTIONS}
