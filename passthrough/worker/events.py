"""Events in the life of a volume: a name, a level and a text with named fields for each.

The worker and its guards log their events as lines of text. The plugin reads the fields back from
these lines (`told`), so both formats of its log have them (plugin/events.py).
"""

import logging
import re
import string
from collections.abc import Mapping
from functools import cache
from typing import Final, NamedTuple, TypeAlias

log = logging.getLogger(__name__)

Field: TypeAlias = str | int | float
"""A value in the line of an event."""

_PATTERNS: Final[Mapping[str, str]] = {
    "d": r"[0-9]{1,18}",
    "g": r"[0-9]{1,18}(?:\.[0-9]{1,18})?",
    ".1f": r"[0-9]{1,18}\.[0-9]",
    "": r".*",
}
"""By the format of a field. The lengths bound what a worker under an attacker's control logs."""


class Event(NamedTuple):
    """A kind of event."""

    name: str
    """The value of `event` in the JSON format of the log."""
    level: int
    text: str
    """The text of the line, for str.format."""
    when: str
    """For docs/operations.md."""

    def fields(self) -> dict[str, str]:
        """Return the names of the fields, with their formats."""
        parts = string.Formatter().parse(self.text)
        return {name: form or "" for _, name, form, _ in parts if name is not None}


WORKER_REPLACED: Final = Event(
    "worker_replaced",
    logging.WARNING,
    "worker {worker:d} took over after {takeover_ms:.1f} ms",
    "a standby serves in place of a worker that has died",
)
WORKER_DIED: Final = Event(
    "worker_died",
    logging.WARNING,
    "worker {worker:d} {cause}",
    "a worker has died; a guard makes the next one",
)
GUARD_REPLACED: Final = Event(
    "guard_replaced",
    logging.WARNING,
    "guard {guard:d} has ended; another one follows",
    "a guard has died",
)
GIVEN_UP: Final = Event(
    "given_up",
    logging.ERROR,
    "the worker has died {deaths:d} times within {within_s:g} s by its own fault: it is given up",
    "workers die again and again; no further one is made",
)
TAKEN_OVER: Final = Event(
    "taken_over",
    logging.WARNING,
    "serves in place of another program, after {without_service_ms:.1f} ms without service",
    "after an upgrade, processes of the new program serve the mount",
)

# A line fits the first of these alone, or the first that it fits.
EVENTS: Final = (WORKER_REPLACED, WORKER_DIED, GUARD_REPLACED, GIVEN_UP, TAKEN_OVER)


def tell(event: Event, **fields: Field) -> None:
    """Log *event*, which is one of EVENTS."""
    log.log(event.level, "%s", event.text.format(**fields))


def told(line: str) -> tuple[Event, dict[str, Field]] | None:
    """Return the event in *line*, a line of `tell` without its level, and the event's fields."""
    name, _, text = line.partition(": ")
    if name != __name__:
        return None
    for event in EVENTS:
        if (found := _pattern(event).fullmatch(text)) is not None:
            forms = event.fields()
            return event, {
                name: _value(forms[name], value) for name, value in found.groupdict().items()
            }
    return None


def _value(form: str, text: str) -> Field:
    if not form:
        return text
    return int(text) if form == "d" else float(text)


@cache
def _pattern(event: Event) -> re.Pattern[str]:
    """Return a pattern of the lines of *event*, with a group for each field."""
    parts = string.Formatter().parse(event.text)
    return re.compile(
        "".join(
            re.escape(text) + (f"(?P<{name}>{_PATTERNS[form or '']})" if name else "")
            for text, name, form, _ in parts
        )
    )
