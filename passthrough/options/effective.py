"""Effective options: the requested ones with every conflict decided, and with the reasons.

The plugin calls `resolve` at Create and for Status. The worker calls `resolve` again, because it
has the source. The mount, the session, the core and the identity take Effective options.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from passthrough.options import owner, sessions, values
from passthrough.options.choices import (
    Atime,
    CachePolicy,
    InodeFileHandles,
    Locks,
    Passthrough,
    Sandbox,
    SessionKind,
    Squash,
    Standby,
    Transport,
)
from passthrough.options.sessions import Release
from passthrough.options.table import OptionError, Requested, Values, as_text
from passthrough.options.timeouts import timeouts


class Note(NamedTuple):
    """A requested option that another value replaces, or that may do unexpected harm."""

    option: str
    effective: str
    """The value in force, as text."""
    reason: str

    def __str__(self) -> str:
        return f"{self.option} is {self.effective}: {self.reason}"


class Effective(Values, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options in force for a volume, made by `resolve`.

    Only the options for a new directory, `subpath`, `owner` and `log_level` may be None, and with
    `owner` also `anon_uid` and `anon_gid`, as long as the source is unknown.
    """

    requested: Requested
    notes: tuple[Note, ...]

    entry_timeout: float
    attr_timeout: float
    dir_entry_timeout: float
    dir_attr_timeout: float
    negative_timeout: float
    killpriv_v2: bool
    posix_acl: bool
    locks: Locks
    standby: Standby


class Rule(NamedTuple):
    """A conflict: if *applies* returns true, *option* has the value *instead*."""

    option: str
    applies: Callable[[Values], bool]
    reason: str
    instead: object = False


def adds_noatime(options: Values) -> bool:
    """Return whether the worker opens each file with O_NOATIME.

    A worker with a sandbox has a mount with the flag noatime, worker/sandbox.py.
    """
    return options.atime is Atime.NOATIME and options.sandbox is Sandbox.NONE


_NO_MOUNT: Final = (
    "with sandbox=none the worker reads through the host's mount, whose flags decide on access"
    " times"
)


def _numbers_differ(options: Values) -> bool:
    """Return whether some callers have other numbers on the host."""
    return bool(options.map_uid or options.map_gid) or options.squash is not Squash.NONE


RULES: Final = (
    Rule(
        "writeback",
        lambda options: options.cache is CachePolicy.NEVER,
        "with cache=never no data may wait in the kernel",
    ),
    Rule(
        "writeback",
        lambda options: options.seal_size,
        "with seal_size each write needs a check before the kernel caches it",
    ),
    Rule(
        "allow_direct_io",
        lambda options: options.writeback,
        "with writeback the kernel writes its cached pages through any descriptor, and O_DIRECT"
        " would refuse those that are not aligned",
    ),
    Rule(
        "no_open",
        lambda options: options.cache is not CachePolicy.ALWAYS,
        "a file that is not opened keeps its cached pages, which only cache=always allows",
    ),
    *(
        Rule(
            option,
            lambda options: options.squash is not Squash.NONE,
            "with squash or owner the host must check each open, and the kernel would send no"
            " request",
        )
        for option in ("no_open", "no_opendir")
    ),
    Rule(
        "dev",
        lambda options: options.squash is not Squash.NONE,
        "with squash or owner the host must check each open, and the kernel opens device nodes by"
        " itself",
    ),
    Rule(
        "posix_acl",
        _numbers_differ,
        "an ACL names users and groups by the host's numbers, to which no map is applied",
    ),
    Rule(
        "atime",
        lambda options: options.sandbox is Sandbox.NONE and options.atime is Atime.STRICTATIME,
        _NO_MOUNT,
        Atime.RELATIME,
    ),
    Rule(
        "diratime",
        lambda options: options.sandbox is Sandbox.NONE and options.atime is not Atime.NOATIME,
        _NO_MOUNT,
        instead=True,
    ),
)


class Obstacle(NamedTuple):
    """A reason why the kernel cannot read and write the host's files by itself."""

    applies: Callable[[Effective], bool]
    reason: str


OBSTACLES: Final = (
    Obstacle(
        lambda options: options.session is SessionKind.LIBFUSE,
        sessions.LACKING[SessionKind.LIBFUSE]["passthrough"].reason,
    ),
    Obstacle(
        lambda options: options.writeback,
        "with writeback the kernel collects writes, and passes none on to the host's files",
    ),
    Obstacle(
        lambda options: options.seal_size,
        "with seal_size the worker must check each write, and passthrough bypasses the worker",
    ),
    Obstacle(
        lambda options: options.cache is CachePolicy.METADATA and options.allow_direct_io,
        "with cache=metadata direct I/O uses the size that the kernel has cached, and passthrough"
        " the host's size: the two can differ",
    ),
    Obstacle(
        lambda options: options.no_open,
        "with no_open no request says which file of the host the kernel is to use",
    ),
    Obstacle(
        adds_noatime,
        "with atime=noatime and sandbox=none reads by passthrough would change access times by the"
        " flags of the host's mount",
    ),
)


class Hindrance(NamedTuple):
    """A reason why the mount of a volume cannot be idmapped."""

    applies: Callable[[Values, Release], bool]
    reason: str


HINDRANCES: Final = (
    Hindrance(
        lambda options, _: bool(options.map_uid or options.map_gid),
        "with map_uid or map_gid the worker needs each caller's ids, and the kernel then hides"
        " them",
    ),
    Hindrance(
        lambda options, _: options.squash is not Squash.NONE,
        "with squash the worker needs each caller's ids, and the kernel then hides them",
    ),
    Hindrance(
        lambda _, release: release < sessions.FIRST_IDMAP,
        "Linux has idmapped mounts of FUSE from 6.12 on",
    ),
)


class Reason(NamedTuple):
    """A reason that holds for some options."""

    applies: Callable[[Values], bool]
    reason: str


LOCAL_LOCKS: Final = (  # why the kernel keeps locks among the users of the volume
    Reason(
        lambda options: options.session is SessionKind.LIBFUSE,
        "pyfuse3 passes no locks on, so that the kernel keeps them among the volume's users",
    ),
    Reason(
        lambda options: options.no_open,
        "with no_open the kernel reports no close, on which the host's locks would end",
    ),
)


ALONE: Final = (  # why no standby can take the worker's place
    Reason(
        lambda options: options.session is SessionKind.LIBFUSE,
        "with session=libfuse the requests in hand lie in the memory of the worker alone",
    ),
    Reason(
        lambda options: options.transport is Transport.IO_URING,
        "with transport=io_uring the kernel fails the requests of a ring when its worker dies",
    ),
)
_WHY_DEV: Final = "the default, because io_uring is slower on some machines"


def resolve(requested: Requested, release: Release, file_handles_obstacle: str = "") -> Effective:
    """Decide the conflicts of *requested* on Linux *release*.

    *file_handles_obstacle* is why no file of the source can be held by file handle; it is empty if
    the files can, or if the source is unknown.

    Raises:
        OptionError: file handles, io_uring, passthrough or idmap are required and not available.
    """
    notes: list[Note] = []
    session = sessions.kind_of(requested.session, release)
    current = owner.implied(msgspec.structs.replace(requested, session=session))
    require_file_handles(current, file_handles_obstacle)
    _require_idmap(current, release)
    if file_handles_obstacle and current.inode_file_handles is not InodeFileHandles.NEVER:
        current = msgspec.structs.replace(current, inode_file_handles=InodeFileHandles.NEVER)
        notes.append(Note("inode_file_handles", "never", file_handles_obstacle))
    for option, applies, reason, instead in RULES:
        if getattr(current, option) not in {None, instead} and applies(current):
            current = msgspec.structs.replace(current, **{option: instead})
            notes.append(Note(option, values.as_text(instead), reason))
    local = next((reason for applies, reason in LOCAL_LOCKS if applies(current)), "")
    if local and current.locks is Locks.HOST:
        notes.append(Note("locks", "local", local))
    alone = next((reason for applies, reason in ALONE if applies(current)), "")
    if alone and current.standby is Standby.ON:
        notes.append(Note("standby", "off", alone))
    notes.extend(_cautions(current))
    is_kernel = session is SessionKind.KERNEL
    applies_acls = is_kernel and current.xattr and not _numbers_differ(current)
    answered = {
        **timeouts(current)._asdict(),
        "locks": Locks.LOCAL if local or current.locks is Locks.LOCAL else Locks.HOST,
        "transport": _transport(current),
        "standby": Standby.OFF if alone else current.standby or Standby.ON,
        "killpriv_v2": is_kernel if current.killpriv_v2 is None else current.killpriv_v2,
        "posix_acl": applies_acls if current.posix_acl is None else current.posix_acl,
    }
    effective = Effective(
        **msgspec.structs.asdict(current) | answered, requested=requested, notes=tuple(notes)
    )
    return _resolve_passthrough(effective)


def _resolve_passthrough(options: Effective) -> Effective:
    reason = obstacle(options)
    if not reason or options.passthrough is Passthrough.OFF:
        return options
    if options.passthrough is Passthrough.ON:
        raise OptionError("passthrough", "on", "auto or off", f"'on' cannot be had: {reason}")
    # No note: `auto` leaves the choice to passfs.
    return msgspec.structs.replace(options, passthrough=Passthrough.OFF)


def obstacle(options: Effective) -> str:
    """Return why *options* allow no passthrough, or an empty text."""
    return next((reason for applies, reason in OBSTACLES if applies(options)), "")


def require_file_handles(options: Values, obstacle: str) -> None:
    """Refuse inode_file_handles=mandatory if there is an *obstacle* to file handles.

    Raises:
        OptionError: gives the obstacle.
    """
    if obstacle and options.inode_file_handles is InodeFileHandles.MANDATORY:
        reason = f"'mandatory' cannot be had: {obstacle}"
        raise OptionError("inode_file_handles", "mandatory", "prefer or never", reason)


def _require_idmap(options: Values, release: Release) -> None:
    hindrances = (reason for applies, reason in HINDRANCES if applies(options, release))
    if options.idmap and (reason := next(hindrances, "")):
        raise OptionError("idmap", "true", "false", f"'true' cannot be had: {reason}")


def require_io_uring(options: Values, obstacle: str) -> None:
    """Refuse transport=io_uring if there is an *obstacle* to it.

    Raises:
        OptionError: gives the obstacle.
    """
    if obstacle and options.transport is Transport.IO_URING:
        reason = f"'io_uring' cannot be had: {obstacle}"
        raise OptionError("transport", "io_uring", "auto or dev", reason)


def _cautions(options: Values) -> Iterator[Note]:
    """Yield a note for each option that may do harm that the user does not expect."""
    if options.no_readdir and not options.readonly:
        # Beside a source it is refused, options/parsing.py.
        reason = (
            "an engine takes the volume for empty, and copies an image's files over its files;"
            " mount it with :nocopy"
        )
        yield Note("no_readdir", "true", reason)
    if options.mode is not None and (meant := values.perhaps_unquoted(options.mode)):
        reason = f'YAML makes this of {meant} without quotes; if you meant that, write "{meant}"'
        yield Note("mode", values.mode_as_text(options.mode), reason)


def _transport(options: Values) -> Transport:
    if options.transport is not Transport.IO_URING:
        return Transport.DEV
    require_io_uring(options, sessions.lack(options.session, "transport"))
    return Transport.IO_URING


def described(
    options: Effective, release: Release, passthrough_obstacle: str = ""
) -> dict[str, object]:
    """Return the options, notes, session, transport, standby and passthrough, with reasons.

    *passthrough_obstacle* is why a mount does without passthrough, which *options* allow.
    """
    requested = options.requested
    automatic = requested.session is SessionKind.AUTO
    why = sessions.automatic(release).reason if automatic else "as asked for"
    return {
        "options": as_text(options),
        "notes": [str(note) for note in options.notes],
        "session": f"{options.session}: {why}",
        "transport": f"{options.transport}: {_why_transport(options)}",
        "standby": f"{options.standby}: {_why_standby(options)}",
        "passthrough": _passthrough(options, passthrough_obstacle),
    }


def _why_transport(options: Effective) -> str:
    if options.requested.transport is not Transport.AUTO:
        return "as asked for"
    return sessions.lack(options.session, "transport") or _WHY_DEV


def _why_standby(options: Effective) -> str:
    alone = next((reason for applies, reason in ALONE if applies(options)), "")
    if alone:
        return alone
    if options.requested.standby is not None:
        return "as asked for"
    return "another process makes the worker anew when it dies"


def _passthrough(options: Effective, mount_obstacle: str) -> str:
    """Return whether the kernel reads and writes the host's files by itself, and why."""
    if options.requested.passthrough is Passthrough.OFF:
        return "off: as asked for"
    if reason := obstacle(options) or mount_obstacle:
        return f"off: {reason}"
    return "on: the kernel reads and writes the host's files by itself"
