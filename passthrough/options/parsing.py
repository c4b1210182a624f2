"""Parses options from text, and refuses those that a volume cannot have.

Text comes from `docker volume create -o`, from `passfs mount -o` and from fstab(5) alike; all other
modules work with typed values.
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from passthrough.options import owner, sessions
from passthrough.options.sessions import Release
from passthrough.options.table import OPTIONS, OptionError, Requested, text_of
from passthrough.options.vocabulary import ALIASES, MEANINGLESS, canonical, suggestion

FOR_A_NEW_DIRECTORY: Final = ("mode", "uid", "gid")
"""The options for a directory that the plugin makes."""

OF_A_SOURCE: Final = ("subpath", "create")
"""The options that say more about the directory that `source` names."""


class _Refusal(NamedTuple):
    """An option that a volume cannot have, although its value is valid."""

    option: str
    accepted: str
    reason: str


def parse_options(
    given: Mapping[str, str],
    release: Release,
    *,
    others: tuple[str, ...] = (),
    has_source: bool = False,
) -> Requested:
    """Parse the options *given* to a volume on Linux *release*.

    *others* are names that the caller parses itself: a refusal lists them among the known names.
    With *has_source* the directory to serve exists, unless `create` is given.

    Raises:
        OptionError: an option is unknown, has a value that is not accepted, is given twice, is
            lacking in the session, or contradicts the source.
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
    requested = msgspec.convert(parsed, Requested)
    for name, accepted, reason in _refusals(requested, release, has_source=has_source):
        written = spelled[name]
        raise OptionError(written, given[written], accepted, f"{given[written]!r} {reason}")
    return requested


def parse_option(written: str, text: str, others: tuple[str, ...] = ()) -> tuple[str, object]:
    """Return the option that *written*, its name or an alias, sets, and its value.

    *others* as in `parse_options`.

    Raises:
        OptionError: the option is unknown, or does not accept *text*.
    """
    name, value = _unalias(written, text, others)
    try:
        return name, OPTIONS[name].parse(value)
    except ValueError:
        accepted = OPTIONS[name].accepts + OPTIONS[name].explain(text)
        raise OptionError(written, text, accepted) from None


def _unalias(written: str, text: str, others: tuple[str, ...]) -> tuple[str, str]:
    """Return the option and the text that *written*, an option's name or an alias, stands for."""
    name = canonical(written)
    if name in OPTIONS:
        return name, text
    if name in MEANINGLESS:
        raise OptionError(
            written, text, "the option left out", f"{text!r} is refused: {MEANINGLESS[name]}"
        )
    if name not in ALIASES:
        known = [*OPTIONS, *ALIASES, *others]
        accepted = suggestion(name, known)
        raise OptionError(written, text, accepted, f"is not known, given here as {text!r}")
    if text.strip().lower() not in {"", "true"}:
        raise OptionError(written, text, "no value")
    return ALIASES[name]


def _refusals(requested: Requested, release: Release, *, has_source: bool) -> Iterator[_Refusal]:
    session, defaults = sessions.kind_of(requested.session, release), Requested()
    for name, lack in sessions.LACKING.get(session, {}).items():
        accepted = [v for v in (getattr(defaults, name), lack.without) if v is not None]
        value = getattr(requested, name)
        if value is not None and value not in accepted:
            reason = f"cannot be had with session={requested.session}: {lack.reason}"
            yield _Refusal(name, " or ".join(text_of(name, v) for v in accepted), reason)
    for option, _, accepted_beside, why in owner.conflicts(requested):
        yield _Refusal(option, accepted_beside, f"cannot be had beside owner: {why}")
    for name in FOR_A_NEW_DIRECTORY:
        if has_source and not requested.create and getattr(requested, name) is not None:
            reason = "is for a new directory, and the source exists already"
            yield _Refusal(name, "the option left out, or create beside it", reason)
    for name in OF_A_SOURCE:
        if not has_source and getattr(requested, name) != getattr(defaults, name):
            reason = "is about a source, and the volume has a directory of its own"
            yield _Refusal(name, "source beside it, or the option left out", reason)
    if has_source and requested.no_readdir and not requested.readonly:
        # An engine that sees an empty volume copies the image's files into it (copy-up).
        reason = "hides the files of the source, so that an engine copies an image's over them"
        yield _Refusal("no_readdir", "readonly beside it, or false", reason)
