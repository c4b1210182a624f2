"""Refuses options of Docker's local driver, and says what to give this driver instead; no I/O."""

from collections.abc import Mapping
from typing import Final

from passthrough.options.table import OptionError
from passthrough.options.vocabulary import ALIASES, canonical

# Options of other drivers that name the directory to serve, and those that accompany these.
_DIRECTORY: Final = ("device", "mountpoint", "path", "src")
_FOREIGN: Final = (*_DIRECTORY, "type", "o")
# The types of a bind mount in the options of the local driver.
_BINDS: Final = ("", "none", "bind")


def refuse(given: Mapping[str, str]) -> None:
    """Refuse options of other drivers.

    Raises:
        OptionError: says which options of this driver to give in their place.
    """
    found = {written: text for written, text in given.items() if canonical(written) in _FOREIGN}
    for written, text in found.items():
        reason = f"{text!r} is for another driver, such as Docker's local one"
        raise OptionError(written, text, _instead(found), reason)


def _instead(found: Mapping[str, str]) -> str:
    """Return the options to give instead of *found*; it quotes no value that may be secret."""
    texts = {canonical(written): text.strip() for written, text in found.items()}
    device = next((texts[name] for name in _DIRECTORY if name in texts), "/DIRECTORY")
    flags = [f"-o {word}" for word in texts.get("o", "").split(",") if canonical(word) in ALIASES]
    ours = " ".join([f"-o source={device}", *flags])
    if not device.startswith("/") or texts.get("type", "").lower() not in _BINDS:
        ours = "a file system that the host has mounted, and -o source=/DIRECTORY for its place"
    return f"{ours}, in place of {' and '.join(found)}"
