"""What applies of what was asked for: conflicts between options are decided here, and only here.

`decide` takes a Config as it was given and makes one with an answer in every field, and with a note
for each wish that another option overrules. Notes are for people: they stand in the log where a
volume is made or served, and in its status.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from passthrough.options import cache_policy, values
from passthrough.options.config import (
    LACKING,
    Atime,
    CachePolicy,
    Config,
    InodeFileHandles,
    Locks,
    OptionError,
    Passthrough,
    Session,
    Squash,
    Transport,
    as_text,
    automatic,
    session_of,
)


class Note(NamedTuple):
    """An option that was asked for and does not apply."""

    option: str
    effective: str
    """The value that applies, as text."""
    reason: str

    def __str__(self) -> str:
        return f"{self.option} is {self.effective}: {self.reason}"


class Decided(NamedTuple):
    """The values that apply, and why some are not those that were asked for."""

    config: Config
    notes: tuple[Note, ...]


class Rule(NamedTuple):
    """One conflict: where *conflicts* holds, *option* is turned off."""

    option: str
    conflicts: Callable[[Config], bool]
    reason: str


RULES: Final = (
    Rule(
        "writeback",
        lambda config: config.cache is CachePolicy.NEVER,
        "with cache=never no data may wait in the kernel",
    ),
    Rule(
        "writeback",
        lambda config: config.seal_size,
        "seal_size refuses what would make a file longer, and must be asked before it is cached",
    ),
    Rule(
        "allow_direct_io",
        lambda config: config.writeback,
        "with writeback the kernel writes its cached pages through any descriptor, and O_DIRECT"
        " would refuse those that are not aligned",
    ),
    Rule(
        "no_open",
        lambda config: config.cache is not CachePolicy.ALWAYS,
        "a file that is not opened keeps its cached pages, which cache=always alone allows",
    ),
    *(
        Rule(
            option,
            lambda config: config.squash is not Squash.NONE,
            "squash has the host asked about each open, and the kernel would ask about none",
        )
        for option in ("no_open", "no_opendir")
    ),
    Rule(
        "posix_acl",
        lambda config: bool(config.map_uid or config.map_gid) or config.squash is not Squash.NONE,
        "an ACL names users and groups by the host's numbers, to which no map is applied",
    ),
)


class Obstacle(NamedTuple):
    """What keeps the kernel from reading and writing the host's files by itself."""

    stands: Callable[[Config], bool]
    """Whether it does so with a Config in which other conflicts are decided."""
    reason: str


OBSTACLES: Final = (
    Obstacle(
        lambda config: config.session is Session.LIBFUSE,
        LACKING[Session.LIBFUSE]["passthrough"],
    ),
    Obstacle(
        lambda config: config.writeback,
        "with writeback the kernel collects writes, and passes none on to the host's files",
    ),
    Obstacle(
        lambda config: config.seal_size,
        "seal_size must be asked about each write, which passthrough keeps from it",
    ),
    Obstacle(
        lambda config: config.cache is CachePolicy.METADATA and config.allow_direct_io,
        "with cache=metadata a file's size is known until its next open: direct I/O would go by"
        " that one, and who passes through by the host's",
    ),
    Obstacle(
        lambda config: config.no_open,
        "with no_open nobody is asked which file of the host is meant",
    ),
    Obstacle(
        lambda config: config.atime is Atime.NOATIME,
        "with atime=noatime access times stay, and the kernel opens the host's file so that they"
        " move",
    ),
)


# What leaves locks to the kernel, which keeps them among the users of the volume, and why.
LOCAL_LOCKS: Final[tuple[tuple[Callable[[Config], bool], str], ...]] = (
    (
        lambda config: session_of(config) is Session.LIBFUSE,
        "pyfuse3 passes no locks on, so that the kernel keeps them among the volume's users",
    ),
    (
        lambda config: config.no_open,
        "nobody hears of the close of a file that was opened without a request",
    ),
)


_WHY_DEV: Final = (
    "the kernel sends again what a worker has not answered when it dies, but not what it has sent"
    " over io_uring"
)


def obstacle(config: Config) -> str:
    """Why *config*, in which other conflicts are decided, allows no passthrough; or nothing."""
    return next((reason for stands, reason in OBSTACLES if stands(config)), "")


def decide(config: Config, without_handles: str = "", without_rings: str = "") -> Decided:
    """What applies where *config* was asked for; of what is decided already, the same again.

    *without_handles* is why files of the source cannot be held by handle, empty as long as they can
    for all that is known; *without_rings* is why requests cannot come over io_uring, the same way.

    Raises:
        OptionError: they must be, or come so; or passthrough must be on, and cannot.
    """
    notes = []
    if without_handles and config.inode_file_handles is not InodeFileHandles.NEVER:
        if config.inode_file_handles is InodeFileHandles.MANDATORY:
            reason = f"'mandatory' cannot be had: {without_handles}"
            raise OptionError("inode_file_handles", "mandatory", "prefer or never", reason)
        config = msgspec.structs.replace(config, inode_file_handles=InodeFileHandles.NEVER)
        notes.append(Note("inode_file_handles", "never", without_handles))
    for option, conflicts, reason in RULES:
        if getattr(config, option) and conflicts(config):
            off = False
            config = msgspec.structs.replace(config, **{option: off})
            notes.append(Note(option, values.as_text(off), reason))
    local = [reason for leaves, reason in LOCAL_LOCKS if leaves(config)][:1]
    if config.locks is Locks.HOST:
        notes.extend(Note("locks", "local", reason) for reason in local)
    notes.extend(_cautions(config))
    session = session_of(config)
    config = msgspec.structs.replace(
        config,
        **cache_policy.timeouts(config)._asdict(),
        locks=Locks.LOCAL if local or config.locks is Locks.LOCAL else Locks.HOST,
        session=session,
        transport=_transport(config, session, without_rings),
        killpriv_v2=session is Session.KERNEL if config.killpriv_v2 is None else config.killpriv_v2,
    )
    if config.passthrough is not Passthrough.OFF and (reason := obstacle(config)):
        if config.passthrough is Passthrough.ON:
            raise OptionError("passthrough", "on", "auto or off", f"'on' cannot be had: {reason}")
        # Nobody has asked for it by name, so that it is no note.
        config = msgspec.structs.replace(config, passthrough=Passthrough.OFF)
    return Decided(config, tuple(notes))


def _cautions(config: Config) -> Iterator[Note]:
    """Yield a note for each option that applies and may do harm that the user does not expect."""
    if config.no_readdir and not config.readonly:
        # With a source it is refused, passthrough/options/config.py.
        reason = (
            "an engine takes the volume for empty, and copies an image's files over its files;"
            " mount it with :nocopy"
        )
        yield Note("no_readdir", "true", reason)
    if config.mode is not None and (meant := values.perhaps_unquoted(config.mode)):
        reason = f'YAML makes this of {meant} without quotes; if you meant that, write "{meant}"'
        yield Note("mode", values.mode_as_text(config.mode), reason)


def _transport(config: Config, session: Session, without_rings: str) -> Transport:
    """What brings the requests."""
    if config.transport is not Transport.IO_URING:
        return Transport.DEV
    if why_not := LACKING.get(session, {}).get("transport") or without_rings:
        reason = f"'io_uring' cannot be had: {why_not}"
        raise OptionError("transport", "io_uring", "auto or dev", reason)
    return Transport.IO_URING


def described(
    config: Config, without_handles: str = "", without_passthrough: str = ""
) -> dict[str, object]:
    """What applies of *config*, and why, for people: options, notes, who serves, who moves data.

    *without_passthrough* is why a mount does without it, which its options would allow.
    """
    applies, notes = decide(config, without_handles)
    why = automatic().reason if config.session is Session.AUTO else "as asked for"
    return {
        "options": as_text(applies),
        "notes": [str(note) for note in notes],
        "session": f"{applies.session}: {why}",
        "transport": f"{applies.transport}: {_why_transport(config, applies)}",
        "passthrough": _passthrough(config, applies, without_passthrough),
    }


def _why_transport(asked: Config, applies: Config) -> str:
    if asked.transport is not Transport.AUTO:
        return "as asked for"
    return LACKING.get(applies.session, {}).get("transport", _WHY_DEV)


def _passthrough(asked: Config, applies: Config, without: str) -> str:
    """Who reads and writes the host's files, and why."""
    if asked.passthrough is Passthrough.OFF:
        return "off: as asked for"
    if reason := obstacle(applies) or without:
        return f"off: {reason}"
    return "on: the kernel reads and writes the host's files by itself"
