"""What an administrator has decided for all volumes: default options, and forbidden ones; no I/O.

Both go by what an option means and not by how it is written, so that neither `-` for `_`, nor an
alias, nor another word for the same value leads around them. What the registry keeps is what the
user gave: a decision that has changed applies to the volumes that there are, at their next Mount.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from passthrough.options.parsing import FOR_A_NEW_DIRECTORY, parse_option
from passthrough.options.sessions import FIRST_KERNEL_SESSION, Release
from passthrough.options.table import OPTIONS, OptionError, text_of
from passthrough.options.vocabulary import ALIASES, canonical
from plugin import options
from plugin.errors import InvalidOption
from plugin.options import SOURCE, VolumeOptions


class Ban(NamedTuple):
    """An option that volumes may not give, or not with one value."""

    option: str
    value: str | None = None
    """As `VolumeOptions.described` has it; None forbids whatever is not the default."""

    def __str__(self) -> str:
        return self.option if self.value is None else f"{self.option}={self.value}"


class Policy(NamedTuple):
    """Everything that an administrator has decided about options."""

    release: Release
    """Of Linux, which decides what `session=auto` stands for."""
    defaults: Mapping[str, str] = {}
    """Option -> text, for volumes that do not give it; made by `default_options`."""
    forbidden: tuple[Ban, ...] = ()

    def understand(self, given: Mapping[str, str]) -> VolumeOptions:
        """What the options *given* by a user mean for a volume here.

        Raises:
            InvalidOption: names the option, quotes the value and says what is accepted.
        """
        understood = self._with_defaults(given)
        if not self.forbidden:  # most often, and each Get asks
            return understood
        has, usual = understood.described(), self._usual()
        for written, text in given.items():
            option = _option_of(written)
            for ban in self.forbidden:
                if ban.option == option and _meets(ban, has, usual):
                    meaning = repr(usual[option]) if option in usual else "a directory of its own"
                    accepted = f"it left out, which means {meaning}"
                    reason = f"{text!r} is forbidden by the administrator of this plugin"
                    raise InvalidOption(str(OptionError(written, text, accepted, reason)))
        return understood

    def contradiction(self) -> Ban | None:
        """The ban that forbids what volumes have that give no options, if there is one."""
        usual = self._usual()
        return next((ban for ban in self.forbidden if _meets(ban, usual, usual)), None)

    def _with_defaults(self, given: Mapping[str, str]) -> VolumeOptions:
        settled = {_option_of(written) for written in given}
        if options.has_source(given):
            settled |= set(FOR_A_NEW_DIRECTORY)  # which would be refused beside it
        beneath = {name: text for name, text in self.defaults.items() if name not in settled}
        try:
            return options.parse(beneath | dict(given), self.release)
        except InvalidOption as error:
            options.parse(
                given, self.release
            )  # a mistake that has nothing to do with defaults is told as it is
            ours = ", ".join(f"{name}={text}" for name, text in beneath.items())
            raise InvalidOption(f"{error} (defaults of this plugin: {ours})") from error

    def _usual(self) -> dict[str, str]:
        """What volumes have that give no options."""
        return options.parse(self.defaults, self.release).described()


def default_options(text: str) -> Mapping[str, str]:
    """The options in *text*, such as `cache=never,ro`, each by its one name.

    Raises:
        InvalidOption: one is unknown, has a bad value or stands twice, or two cannot be together.
    """
    found: dict[str, str] = {}
    with _refusing():
        for name, _, value in _words(text):
            if canonical(name) == SOURCE:
                raise OptionError(name, value, "it left out", "is each volume's own")
            option, meaning = parse_option(name, value)
            if option in found:
                raise OptionError(name, value, "it once", f"{value!r} is a second value")
            found[option] = text_of(option, meaning)
    options.parse(found, FIRST_KERNEL_SESSION)  # `Settings.policy` knows the release in use
    return found


def forbidden_options(text: str) -> tuple[Ban, ...]:
    """The bans in *text*, such as `suid,dev=true,rw`.

    Raises:
        InvalidOption: an option is unknown, or a value is none of its.
    """
    with _refusing():
        return tuple(_ban(*word) for word in _words(text))


def _ban(name: str, sign: str, value: str) -> Ban:
    option = canonical(name)
    if not sign and option in {*OPTIONS, SOURCE}:
        return Ban(option)
    if option == SOURCE:
        accepted = "it without a value, which forbids all directories of the host"
        raise OptionError(name, value, accepted)
    option, meaning = parse_option(name, value, (SOURCE,))
    return Ban(option, text_of(option, meaning))


def _option_of(written: str) -> str:
    """The one name of the option that *written*, its name in any spelling or an alias, sets."""
    name = canonical(written)
    return ALIASES[name][0] if name in ALIASES else name


def _meets(ban: Ban, has: Mapping[str, str], usual: Mapping[str, str]) -> bool:
    """Whether a volume that *has* these options is one that *ban* is about."""
    value = has.get(ban.option)
    return value != usual.get(ban.option) if ban.value is None else value == ban.value


@contextmanager
def _refusing() -> Iterator[None]:
    """Have a refusal of the file system's options be one of the plugin's."""
    try:
        yield
    except OptionError as error:
        raise InvalidOption(str(error)) from error


def _words(text: str) -> Iterator[tuple[str, str, str]]:
    """The parts of `a=b,c`, as mount(8) splits it: each with its `=` and its value, if any."""
    return (word.partition("=") for word in map(str.strip, text.split(",")) if word)
