"""The values of options: from the text that a user writes, and back to text."""

import enum
import re
from collections.abc import Callable
from typing import Final

# A timeout that the kernel keeps as 64-bit seconds; ten years are for ever in the life of a mount.
_LONGEST_S: Final = 10 * 365 * 86_400.0
_UNITS_S: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)", re.ASCII)
_BOOLEANS: Final = {
    "": True,  # a bare `-o readonly` arrives as an empty value
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
# What mount(8) shows as the device: no separators of mount options, /proc/mounts or the terminal.
_FSNAME: Final = re.compile(r"[A-Za-z0-9_.:/@+-]{1,128}")

# Each of these turns a text into a value, or raises ValueError.


def boolean(text: str) -> bool:
    """A switch; nothing at all means on."""
    try:
        return _BOOLEANS[text.strip().lower()]
    except KeyError:
        raise ValueError(text) from None


def seconds(text: str) -> float:
    """A duration with or without a unit, in seconds."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or (value := float(match[1]) * _UNITS_S[match[2]]) > _LONGEST_S:
        raise ValueError(text)
    return value


def word(words: type[enum.StrEnum]) -> Callable[[str], enum.StrEnum]:
    """One of *words*."""

    def parse(text: str) -> enum.StrEnum:
        return words(text.strip().lower())

    return parse


def fsname(text: str) -> str:
    """What df and mount show as the device."""
    if _FSNAME.fullmatch(text) is None:
        raise ValueError(text)
    return text


def as_text(value: object) -> str:
    """A value in a form that its parser takes; the caller knows what None stands for."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        # Down to nanoseconds, as the kernel keeps it, and never in the form 1e+06.
        return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
    return str(value)
