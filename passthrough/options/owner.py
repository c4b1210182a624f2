"""The option `owner`: what it implies, what it excludes, and the user that all callers act as.

With `owner`, all callers act as the source's owner, as with `squash=all`, and every file shows the
given owner. The source's owner is read at each mount.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from passthrough.options.choices import Squash
from passthrough.options.table import OptionError, Requested, text_of

ANONYMOUS: Final = 65534
"""The user and group that squashed callers act as by default."""

_ROOT: Final = 0
_ALREADY: Final = "with owner all callers act as the source's owner, and every file shows the owner"


class Conflict(NamedTuple):
    """A value that an option cannot have beside `owner`."""

    option: str
    applies: Callable[[Requested], bool]
    accepted: str
    reason: str


CONFLICTS: Final = (
    Conflict("squash", lambda given: given.squash is not Squash.NONE, "none", _ALREADY),
    Conflict("map_uid", lambda given: bool(given.map_uid), "none", _ALREADY),
    Conflict("map_gid", lambda given: bool(given.map_gid), "none", _ALREADY),
    Conflict("idmap", lambda given: given.idmap, "false", _ALREADY),
    Conflict(
        "suid",
        lambda given: given.suid,
        "false",
        "with owner any user could make a program that runs as the shown owner",
    ),
    *(
        Conflict(
            option,
            lambda given, option=option, acting=acting: (  # type: ignore[misc]
                getattr(given, option) == _ROOT and getattr(given, acting) is None
            ),
            f"another owner of the directory, or {acting} beside it",
            "with owner any user could act as the host's root",
        )
        for option, acting in (("uid", "anon_uid"), ("gid", "anon_gid"))
    ),
)


def conflicts(given: Requested) -> Iterator[Conflict]:
    """Yield the conflicts of `owner` with other options *given*."""
    if given.owner is not None:
        yield from (conflict for conflict in CONFLICTS if conflict.applies(given))


def implied(given: Requested) -> Requested:
    """Return the options *given* with those that `owner`, or its absence, implies."""
    if given.owner is not None:
        return msgspec.structs.replace(given, squash=Squash.ALL)
    return msgspec.structs.replace(
        given,
        anon_uid=ANONYMOUS if given.anon_uid is None else given.anon_uid,
        anon_gid=ANONYMOUS if given.anon_gid is None else given.anon_gid,
    )


def with_source(given: Requested, uid: int, gid: int) -> Requested:
    """Return the options *given* for a source with the owner *uid* and *gid*.

    Raises:
        OptionError: callers would act as root, and the options do not say so.
    """
    if given.owner is None:
        return given
    for kind, number, option in (("user", uid, "anon_uid"), ("group", gid, "anon_gid")):
        if number == _ROOT and getattr(given, option) is None:
            text = text_of("owner", given.owner)
            raise OptionError(
                "owner",
                text,
                f"a source that belongs to another {kind}, or {option} for the {kind} to act as",
                f"{text!r} would let any user of a container act as root, because the source"
                f" belongs to the host's {kind} 0",
            )
    return msgspec.structs.replace(
        given,
        anon_uid=uid if given.anon_uid is None else given.anon_uid,
        anon_gid=gid if given.anon_gid is None else given.anon_gid,
    )
