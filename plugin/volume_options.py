"""Parses the `-o key=value` pairs of a volume; no I/O.

`passthrough.options` parses every option but `source`, the directory to serve.

If a volume has a directory of its own and does not give `locks`, its locks are local: no source may
contain that directory or lie in it (admin/source.py), and all containers of the volume use one
mount, where the kernel keeps the locks.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from passthrough.options import effective
from passthrough.options.choices import Locks
from passthrough.options.effective import Effective, resolve
from passthrough.options.parsing import parse_options
from passthrough.options.sessions import Release
from passthrough.options.table import OPTIONS, OptionError, Requested, as_text
from passthrough.options.vocabulary import canonical, option_of, suggestion
from plugin import foreign_options
from plugin.errors import InvalidOption

SOURCE = "source"
SOURCE_ACCEPTED = "the absolute path of an existing directory on the host, without '..'"


class VolumeOptions(NamedTuple):
    """The parsed options of a volume."""

    source: str | None
    """The host's directory as the user wrote it; None for a directory of the volume's own."""
    effective: Effective
    """For a directory of the volume's own with that directory's defaults, also as requested."""
    requested: Requested
    """The options as the user gave them, and the administrator's defaults."""

    @property
    def served(self) -> str | None:
        """The host's directory that the volume serves; None for one of the volume's own."""
        if self.source is None or self.requested.subpath is None:
            return self.source
        return os.path.join(self.source, self.requested.subpath)

    def requested_as_text(self) -> dict[str, str]:
        """Return every requested option as text; values with one meaning have one text."""
        source = {} if self.source is None else {SOURCE: os.path.normpath(self.source)}
        return source | as_text(self.requested)


def parse(given: Mapping[str, str], release: Release) -> VolumeOptions:
    """Parse the options *given* to a volume on Linux *release*.

    Raises:
        InvalidOption: names the option, quotes the value and says what is accepted.
    """
    sources = _sources(given)
    others = without_source(given)
    try:
        foreign_options.refuse(others)
        requested = parse_options(others, release, others=(SOURCE,), has_source=bool(sources))
        in_force = resolve(requested if sources else _of_own_directory(requested), release)
    except OptionError as error:
        raise InvalidOption(str(error)) from error
    if len(sources) > 1:
        *_, (written, text) = sources.items()
        raise refused_source(text, "is given twice", "the option once", written)
    source = next(iter(sources.values()), None)
    if source is not None:
        _check_text(source)
    return VolumeOptions(source, in_force, requested)


def changed(given: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return the options *given* to a volume after *changes*, where None takes an option away.

    Raises:
        InvalidOption: an option is changed twice, or one that is not known is taken away.
    """
    options = {option_of(written): written for written in changes}
    known = {*OPTIONS, SOURCE, *map(option_of, given)}
    for written, text in changes.items():
        option = option_of(written)
        if options[option] != written:
            reason = f"is given twice, also as {options[option]!r}"
            raise InvalidOption(str(OptionError(written, text or "", "the option once", reason)))
        if text is None and option not in known:
            accepted = suggestion(option, known)
            raise InvalidOption(str(OptionError(written, "", accepted, "is not known")))
    kept = {written: text for written, text in given.items() if option_of(written) not in options}
    return kept | {written: text for written, text in changes.items() if text is not None}


def require_io_uring(options: Effective, obstacle: str) -> None:
    """Refuse transport=io_uring if there is an *obstacle* to it.

    Raises:
        InvalidOption: gives the obstacle.
    """
    try:
        effective.require_io_uring(options, obstacle)
    except OptionError as error:
        raise InvalidOption(str(error)) from error


def has_source(given: Mapping[str, str]) -> bool:
    """Return whether *given* contain a source; the options need not be valid."""
    return bool(_sources(given))


def without_source(given: Mapping[str, str]) -> dict[str, str]:
    """Return the options *given* but the source."""
    return {name: text for name, text in given.items() if canonical(name) != SOURCE}


def refused_source(
    source: str, reason: str, accepted: str = SOURCE_ACCEPTED, written: str = SOURCE
) -> InvalidOption:
    """Return the refusal of *source*, in the form of every refusal of an option."""
    return InvalidOption(str(OptionError(written, source, accepted, f"{source!r} {reason}")))


def difference(have: VolumeOptions, wanted: VolumeOptions) -> str:
    """Return the differences between *have* and *wanted* for a sentence; empty without any."""
    old, new = have.requested_as_text(), wanted.requested_as_text()
    return ", ".join(
        f"{name} is {_value(old, name)} and {_value(new, name)} was asked for"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def _of_own_directory(requested: Requested) -> Requested:
    """Return *requested* with the defaults of a volume that has a directory of its own."""
    if requested.locks is not None:
        return requested
    return msgspec.structs.replace(requested, locks=Locks.LOCAL)


def _sources(given: Mapping[str, str]) -> dict[str, str]:
    return {written: text for written, text in given.items() if canonical(written) == SOURCE}


def _value(texts: Mapping[str, str], name: str) -> str:
    return repr(texts[name]) if name in texts else "nothing"


def _check_text(source: str) -> None:
    # plugin.admin.source would resolve '..' in the plugin's view of the host's tree, where the
    # parent of a directory may differ from the host's.
    if not source.startswith("/") or ".." in source.split("/") or "\0" in source:
        raise refused_source(source, "is not accepted")
