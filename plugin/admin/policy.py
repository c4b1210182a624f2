"""The administrator's default options and forbidden options for all volumes; no I/O.

Both kinds of options compare meanings and not spellings: `-` for `_`, an alias, or another word for
the same value makes no difference. The registry keeps the options that a user gave, so a changed
policy applies to existing volumes at their next Mount.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

from passthrough.options.parsing import FOR_A_NEW_DIRECTORY, parse_option
from passthrough.options.sessions import FIRST_KERNEL_SESSION, Release
from passthrough.options.table import OPTIONS, OptionError, text_of
from passthrough.options.vocabulary import canonical, option_of
from plugin import volume_options
from plugin.errors import InvalidOption, quoted
from plugin.volume_options import SOURCE, VolumeOptions


class Ban(NamedTuple):
    """A forbidden option, or one forbidden value of an option."""

    option: str
    value: str | None = None
    """In the form of `VolumeOptions.requested_as_text`; None forbids all values but the default."""

    def __str__(self) -> str:
        return self.option if self.value is None else f"{self.option}={self.value}"


class Policy(NamedTuple):
    """The administrator's decisions about options."""

    release: Release
    """The kernel's release, which decides the session that `session=auto` means."""
    defaults: Mapping[str, str] = {}
    """Option -> text, for volumes that do not give it; from `default_options`."""
    forbidden: tuple[Ban, ...] = ()

    def parse(self, given: Mapping[str, str]) -> VolumeOptions:
        """Return the options of a volume for which a user has *given* options.

        Raises:
            InvalidOption: names the option, quotes the value and says what is accepted.
        """
        resolved = self._with_defaults(given)
        if not self.forbidden:  # the usual case; each Get comes here
            return resolved
        has, defaults = resolved.requested_as_text(), self._defaults_as_text()
        for written, text in given.items():
            option = option_of(written)
            for ban in self.forbidden:
                if ban.option == option and _forbids(ban, has, defaults):
                    raise _forbidden(written, text, defaults)
        return resolved

    def refuse_names(self, named: Mapping[str, str]) -> None:
        """Refuse one of the options *named*, with names of users, if all its values are forbidden.

        The names have not been looked up, so the refusal does not tell whether the host has them.

        Raises:
            InvalidOption: as of `parse`.
        """
        for written, text in named.items():
            if Ban(option_of(written)) in self.forbidden:
                raise _forbidden(written, text, self._defaults_as_text())

    def contradiction(self) -> Ban | None:
        """Return a ban that forbids a default, or None."""
        defaults = self._defaults_as_text()
        return next((ban for ban in self.forbidden if _forbids(ban, defaults, defaults)), None)

    def _with_defaults(self, given: Mapping[str, str]) -> VolumeOptions:
        without_default = {option_of(written) for written in given}
        if volume_options.has_source(given) and not _creates(given):
            without_default |= set(FOR_A_NEW_DIRECTORY)  # refused for a source that exists
        used = {name: text for name, text in self.defaults.items() if name not in without_default}
        try:
            return volume_options.parse(used | dict(given), self.release)
        except InvalidOption as error:
            # If the given options are wrong by themselves, the refusal does not name the defaults.
            volume_options.parse(given, self.release)
            text = ", ".join(f"{name}={text}" for name, text in used.items())
            raise InvalidOption(f"{error} (defaults of this plugin: {text})") from error

    def _defaults_as_text(self) -> dict[str, str]:
        """Return the options of a volume that gives none."""
        return volume_options.parse(self.defaults, self.release).requested_as_text()


def default_options(text: str) -> Mapping[str, str]:
    """Return the options in *text*, such as `cache=never,ro`, by their canonical names.

    Raises:
        InvalidOption: an option is unknown, has a bad value or occurs twice, or two conflict.
    """
    found: dict[str, str] = {}
    with _as_invalid_option():
        for name, _, value in _words(text):
            if canonical(name) == SOURCE:
                raise OptionError(name, value, "the option left out", "is each volume's own")
            option, meaning = parse_option(name, value)
            if option in found:
                raise OptionError(name, value, "the option once", f"{value!r} is a second value")
            found[option] = text_of(option, meaning)
    volume_options.parse(found, FIRST_KERNEL_SESSION)  # `Settings.policy` knows the release in use
    return found


def forbidden_options(text: str) -> tuple[Ban, ...]:
    """Return the bans in *text*, such as `suid,dev=true,rw`.

    Raises:
        InvalidOption: an option is unknown, or a value is not accepted.
    """
    with _as_invalid_option():
        return tuple(_ban(*word) for word in _words(text))


def _ban(name: str, sign: str, value: str) -> Ban:
    option = canonical(name)
    if not sign and option in {*OPTIONS, SOURCE}:
        return Ban(option)
    if option == SOURCE:
        accepted = "source without a value, which forbids all directories of the host"
        raise OptionError(name, value, accepted)
    option, meaning = parse_option(name, value, (SOURCE,))
    return Ban(option, text_of(option, meaning))


def _creates(given: Mapping[str, str]) -> bool:
    """Return whether the options *given* ask for a new source; they need not be valid."""
    with suppress(OptionError):
        return any(
            parse_option(written, text)[1] is True
            for written, text in given.items()
            if option_of(written) == "create"
        )
    return False


def _forbidden(written: str, text: str, defaults: Mapping[str, str]) -> InvalidOption:
    """Return the refusal of a forbidden option."""
    option = option_of(written)
    meaning = repr(defaults[option]) if option in defaults else "a directory of its own"
    accepted = f"the option left out; the default is {meaning}"
    reason = f"{quoted(text)} is forbidden by the administrator of this plugin"
    return InvalidOption(str(OptionError(written, text, accepted, reason)))


def _forbids(ban: Ban, has: Mapping[str, str], defaults: Mapping[str, str]) -> bool:
    """Return whether *ban* forbids a volume that *has* these options."""
    value = has.get(ban.option)
    return value != defaults.get(ban.option) if ban.value is None else value == ban.value


@contextmanager
def _as_invalid_option() -> Iterator[None]:
    """Turn an OptionError of the file system into the plugin's InvalidOption."""
    try:
        yield
    except OptionError as error:
        raise InvalidOption(str(error)) from error


def _words(text: str) -> Iterator[tuple[str, str, str]]:
    """Split `a=b,c` as mount(8) does, into triples: name, `=` or empty, value or empty."""
    return (word.partition("=") for word in map(str.strip, text.split(",")) if word)
