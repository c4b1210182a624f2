"""Parsers of the values of options, and their inverse."""

import enum
import re
from collections.abc import Callable
from itertools import pairwise
from operator import itemgetter
from typing import Final, NamedTuple

from passthrough.options.vocabulary import NOTHING, is_name

AUTO: Final = "auto"

# The kernel keeps a timeout as 64-bit seconds; no mount lives for ten years.
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
# No separators of mount options or of /proc/mounts, and no controls of a terminal.
_FSNAME: Final = re.compile(r"[A-Za-z0-9_.:/@+-]{1,128}")

# The highest uid and gid: 4294967295 means "no change" to chown(2).
_LAST_ID: Final = (1 << 32) - 2
_MODE: Final = re.compile(r"[0-7]{3,4}", re.ASCII)
_DECIMAL_MODE: Final = re.compile(r"[1-9][0-9]{2,3}", re.ASCII)
_OWNER, _OWNER_READS, _LAST_MODE = 0o700, 0o400, 0o7777


class Range(NamedTuple):
    """A range of ids: *length* ids from *container* on act as the ids from *host* on."""

    container: int
    host: int
    length: int


class Owner(NamedTuple):
    """A user and a group of containers."""

    uid: int
    gid: int


# The parsers, up to `optional_mode`, and `ranges` turn a text into a value, or raise ValueError.


def boolean(text: str) -> bool:
    """Parse a boolean; an empty text means true."""
    try:
        return _BOOLEANS[text.strip().lower()]
    except KeyError:
        raise ValueError(text) from None


def seconds(text: str) -> float:
    """Parse a duration, with or without a unit, into seconds."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or (value := float(match[1]) * _UNITS_S[match[2]]) > _LONGEST_S:
        raise ValueError(text)
    return value


def word(words: type[enum.StrEnum]) -> Callable[[str], enum.StrEnum]:
    """Return a parser that accepts one of *words*."""

    def parse(text: str) -> enum.StrEnum:
        return words(text.strip().lower())

    return parse


def word_or_auto(words: type[enum.StrEnum]) -> Callable[[str], enum.StrEnum | None]:
    """Return a parser that accepts one of *words*, or `auto`, which is None."""

    def parse(text: str) -> enum.StrEnum | None:
        return None if text.strip().lower() == AUTO else words(text.strip().lower())

    return parse


def fsname(text: str) -> str:
    """Parse the name that df and mount show as the device."""
    if _FSNAME.fullmatch(text) is None:
        raise ValueError(text)
    return text


def optional_subpath(text: str) -> str | None:
    """Parse the path of a directory below another one, or `none`; `./none` is a path."""
    if text.strip().lower() == NOTHING:
        return None
    names = [name for name in text.split("/") if name not in {"", "."}]
    if text.startswith("/") or not names or ".." in names or "\0" in text:
        raise ValueError(text)
    return "/".join(names)


def number(text: str) -> int:
    """Parse a decimal number, which has no sign and no space."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def identifier(text: str) -> int:
    """Parse a uid or gid."""
    value = number(text.strip())
    if value > _LAST_ID:
        raise ValueError(text)
    return value


def only_at_create(text: str) -> str:
    """Return a hint if *text* is a name, which HostUsers of the plugin has not looked up."""
    if not any(is_name(part) for part in text.strip().split(":")):
        return ""
    return "; a name is looked up when a volume is created, so write the number here"


def optional_identifier(text: str) -> int | None:
    """Parse a uid or gid, or `none`."""
    return None if text.strip().lower() == NOTHING else identifier(text)


def optional_owner(text: str) -> Owner | None:
    """Parse a user, and a group after a colon, by default of the same number, or `none`."""
    if text.strip().lower() == NOTHING:
        return None
    uid, colon, gid = text.strip().partition(":")
    if not uid and not colon:
        return Owner(0, 0)  # a bare `-o owner`
    return Owner(identifier(uid), identifier(gid if colon else uid))


def optional_mode(text: str) -> int | None:
    """Parse permission bits in octal digits, chmod(1), or `none`."""
    word = text.strip().lower()
    if word == NOTHING:
        return None
    if _MODE.fullmatch(word) is None:
        raise ValueError(text)
    return int(word, 8)


def unexplained(text: str) -> str:  # noqa: ARG001
    """Return an empty explanation: the refusal of *text* says enough."""
    return ""


def unquoted_mode(text: str) -> str:
    """Return a hint if *text* is a mode that YAML read as an octal number: 493 for 0755."""
    word = text.strip()
    if not _DECIMAL_MODE.fullmatch(word) or not _OWNER_READS <= int(word) <= _LAST_MODE:
        return ""
    meant = mode_as_text(int(word))
    return f'; YAML makes {word} of {meant} without quotes, so write "{meant}" with them'


def perhaps_unquoted(mode: int) -> str:
    """Return the mode that the user may have meant by the digits of *mode*: 0777 for 511.

    YAML reads 0777 without quotes as an octal number, and passes on its decimal digits, 511. Return
    an empty text if the owner of a directory has all rights with *mode*, or lacks one with the
    other mode.
    """
    digits = f"{mode:o}"
    other = int(digits) if _DECIMAL_MODE.fullmatch(digits) else 0
    usable = mode & _OWNER == _OWNER or other & _OWNER != _OWNER or other > _LAST_MODE
    return "" if usable else mode_as_text(other)


def mode_as_text(mode: object) -> str:
    """Return *mode* in octal digits, as chmod(1) accepts them."""
    return f"{mode:04o}"


def ranges(text: str) -> tuple[Range, ...]:
    """Parse ranges of ids, and sort them by the ids of containers.

    No two ranges may overlap on either side. `+` separates ranges as well as `,`, because mount(8)
    splits its options at `,`.
    """
    if text.strip().lower() == NOTHING:
        return ()
    found = []
    for part in text.replace("+", ",").split(","):
        container, host, count = (number(word) for word in part.strip().split(":"))
        if not 1 <= count <= _LAST_ID + 1 - max(container, host):
            raise ValueError(text)
        found.append(Range(container, host, count))
    for start in (Range._fields.index("container"), Range._fields.index("host")):
        for lower, upper in pairwise(sorted(found, key=itemgetter(start))):
            if lower[start] + lower.length > upper[start]:
                raise ValueError(text)
    return tuple(sorted(found))


def as_text(value: object) -> str:
    """Return *value* as its parser accepts it; *value* is not None."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        # To the nanosecond, as the kernel keeps a timeout, and never in the form 1e+06.
        return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
    if isinstance(value, Owner):
        return f"{value.uid}:{value.gid}"
    if isinstance(value, tuple):
        return ",".join(":".join(map(str, part)) for part in value) or NOTHING
    return str(value)
