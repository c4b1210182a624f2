"""Writes the table of events in docs/operations.md from plugin/events.py.

The command is `python -m tests.support.tools.events`.
"""

import logging
import re

from passthrough.worker.events import Event
from plugin.events import EVENTS
from tests.support.tools.generated import REPOSITORY, Section

COMMAND = "python -m tests.support.tools.events"
TABLE = Section(
    REPOSITORY / "docs" / "operations.md",
    "| `event` | level | text, with the fields | when |\n|---|---|---|---|\n",
    "\n<!--",
)


def table() -> str:
    """Return the rows of the table."""
    return "\n".join(f"| {' | '.join(_cells(event))} |" for event in EVENTS)


def line(event: Event) -> str:
    """Return the text of *event* with `…` for each value, as the tables of lines have it."""
    return f"volume …: {re.sub(r'{.*?}', '…', event.text)}"


def _cells(event: Event) -> tuple[str, ...]:
    text = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", event.text)
    return f"`{event.name}`", logging.getLevelName(event.level), f"`{text}`", event.when


if __name__ == "__main__":
    TABLE.write(table())
