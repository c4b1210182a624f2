"""The check of the volumes' health, by their Status."""

from pathlib import Path
from typing import Any

import pytest

from plugin.doctor import volumes
from plugin.doctor.finding import State
from tests.support.tools.doctor import facts, plugin, volume

MOUNTED: dict[str, Any] = {"mounted": True, "references": 1}


@pytest.mark.parametrize(
    ("status", "state", "text"),
    [
        (MOUNTED, State.OK, "1, none with an error"),
        ({"mounted": False}, State.OK, "1, none with an error"),
        (MOUNTED | {"waiting": "Mount"}, State.OK, "1 with a request in hand: db (busy)"),
        (MOUNTED | {"standby": "missing"}, State.WARNING, "1 of 1 with a caution: db (degraded)"),
        ({"mounted": False, "references": 2}, State.ERROR, "1 of 1 with an error: db (lost)"),
        ({"mounted": False, "error": "gone"}, State.ERROR, "1 of 1 with an error: db (error)"),
    ],
)
def test_the_health_of_a_volume(
    tmp_path: Path, status: dict[str, Any], state: State, text: str
) -> None:
    found = volumes.health(facts(tmp_path, plugin=plugin(volume("db", **status))))
    assert (found.state, text in found.found) == (state, True)


def test_the_worst_volumes_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    lost = [volume(f"v{number}", mounted=False, references=1) for number in range(7)]
    fine = volume("fine", **MOUNTED)
    found = volumes.health(facts(tmp_path, plugin=plugin(fine, *lost)))
    assert found.found.startswith("7 of 8 with an error: v0 (lost), ")
    assert found.found.endswith("v4 (lost) and 2 more")


def test_without_a_plugin_nothing_is_asked(tmp_path: Path) -> None:
    assert volumes.health(facts(tmp_path)).state is State.OK
    assert volumes.registry(facts(tmp_path)).state is State.OK
