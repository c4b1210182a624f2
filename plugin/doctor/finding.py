"""What a check of `passfs doctor` has found; no I/O."""

from enum import StrEnum

import msgspec


class State(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    """A feature is missing, and volumes work without it."""
    WARNING = "warning"
    """Volumes work, but may fail, or something could not be checked."""
    ERROR = "error"
    """A volume cannot work."""


class Found(msgspec.Struct, frozen=True):
    """The outcome of a check."""

    state: State
    found: str
    meaning: str = ""
    """The consequence for the user of volumes; empty if all is well."""
    remedy: str = ""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a check, with its name."""

    check: str
    state: State
    found: str
    meaning: str
    remedy: str


def unchecked(reason: str, remedy: str = "run the command as root") -> Found:
    """Return the outcome of a check that could not be made."""
    return Found(State.WARNING, f"not checked: {reason}", "it may be right or wrong", remedy)


def listed(names: list[str], most: int = 5) -> str:
    """Return *names* as a text, with the number of those after the first *most*."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
