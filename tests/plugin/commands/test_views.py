"""views.py, volume_view.py and document.py: health, rows and plain text."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from plugin.commands import volume_view
from plugin.commands.document import Block, Pairs, Table, plain
from plugin.commands.processes import Process
from plugin.protocol import DetailsReply, MountDetails, VolumeInfo
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


def test_plain_text_is_aligned_and_without_control_characters() -> None:
    pairs: Block = Pairs("", [("a", "\x1b[1m"), ("long", "")])
    table: Block = Table("Rows", ("X", "Y"), [("1\n", "2")])
    lines = ["a     \\x1b[1m", "long  -", "", "Rows:", "X    Y", "1\\n  2"]
    assert [*plain([pairs, table])] == lines


def details(mount: MountDetails | None) -> DetailsReply:
    """Return a volume without counters."""
    return DetailsReply(
        volume=VolumeInfo(
            name="vol", created_at=datetime(2026, 1, 1, tzinfo=UTC), status=msgspec.Raw(b"{}")
        ),
        state="",
        users={},
        dead={},
        mount=mount,
        at_ns=0,
        counters=None,
        features=[],
    )


@pytest.mark.parametrize(
    ("worker", "text"),
    [(7, "not known: its worker is of an older passfs"), (0, "not known: the mount has ended")],
)
def test_status_says_why_requests_are_not_known(worker: int, text: str) -> None:
    mount = MountDetails(device="0:1", number=1, loss="", worker=worker, guards=[], log=[])
    serving = [Process(role="worker", pid=7, pid_in_plugin=7)] if worker else []
    shown = volume_view.document(volume_view.view(None, details(mount), serving, []))
    assert ("requests", text) in shown[0].rows


def test_status_of_an_idle_volume_says_nothing_of_requests() -> None:
    (summary,) = volume_view.document(volume_view.view(None, details(None), [], []))
    assert "requests" not in [row[0] for row in summary.rows]
