"""views.py and document.py: health, rows and plain text."""

from typing import Any

import pytest

from plugin.commands import views
from plugin.commands.document import Block, Pairs, Table, plain
from plugin.volumes.health import health

SERVED = {"mounted": True, "references": 1}


@pytest.mark.parametrize(
    ("status", "word", "reason"),
    [
        ({"mounted": False}, "idle", ""),
        (SERVED, "ok", ""),
        (SERVED | {"standby": "ready"}, "ok", ""),
        (SERVED | {"standby": "missing"}, "degraded", "both guards have died"),
        (SERVED | {"dead_references": "1: restart"}, "degraded", "dead references: 1: restart"),
        (SERVED | {"program": "older: why"}, "degraded", "program: older: why"),
        (SERVED | {"error": "is in use"}, "degraded", "is in use"),
        (SERVED | {"waiting": "Mount, for 3 s"}, "busy", "Mount, for 3 s"),
        ({"mounted": False, "references": 2, "error": "died"}, "lost", "died"),
        ({"mounted": False, "error": "no source"}, "error", "no source"),
    ],
)
def test_health_has_a_word_and_a_reason(status: dict[str, Any], word: str, reason: str) -> None:
    found = health(status)
    assert found.word == word
    assert found.reason.startswith(reason)
    assert bool(found.reason) == bool(reason)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7200, "2 h"), (90_061, "1 d 1 h")],
)
def test_a_duration_has_two_units(seconds: float, text: str) -> None:
    assert views.duration(seconds) == text


def test_plain_text_is_aligned_and_without_control_characters() -> None:
    pairs: Block = Pairs("", [("a", "\x1b[1m"), ("long", "")])
    table: Block = Table("Rows", ("X", "Y"), [("1\n", "2")])
    lines = ["a     \\x1b[1m", "long  -", "", "Rows:", "X    Y", "1\\n  2"]
    assert [*plain([pairs, table])] == lines
