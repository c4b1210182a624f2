"""The health of a volume in a word, from its Status; no I/O."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

_NO_GUARD: Final = (
    "both guards have died; restart its containers at the next opportunity, because the volume now"
    " fails with its worker"
)


class Word(StrEnum):
    """The health of a volume in a word."""

    OK = "ok"
    IDLE = "idle"
    """It is not mounted."""
    BUSY = "busy"
    DEGRADED = "degraded"
    """It is served, with a caution."""
    LOST = "lost"
    ERROR = "error"


class Health(NamedTuple):
    """The health of a volume, with the reason."""

    word: Word
    reason: str = ""


def health(status: Mapping[str, Any]) -> Health:
    """Return the health of a volume by its Status."""
    error, mounted = str(status.get("error", "")), bool(status.get("mounted"))
    if waiting := status.get("waiting"):
        return Health(Word.BUSY, str(waiting))
    if not mounted and status.get("references"):
        return Health(Word.LOST, error)
    if not mounted:
        return Health(Word.ERROR, error) if error else Health(Word.IDLE)
    cautions = [
        error,
        _NO_GUARD if status.get("standby") == "missing" else "",
        f"dead references: {dead}" if (dead := status.get("dead_references")) else "",
        f"program: {program}" if (program := status.get("program")) else "",
    ]
    reason = "; ".join(filter(None, cautions))
    return Health(Word.DEGRADED, reason) if reason else Health(Word.OK)
