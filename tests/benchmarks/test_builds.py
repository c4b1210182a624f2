"""builds.py: requests of two checkouts in turn; here of one checkout with itself."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full

REPOSITORY = Path(__file__).parents[2]
LIMIT_S = 120.0
ROW = re.compile(r"(.+): [0-9.]+ µs, other [0-9.]+ µs, [0-9.]+ \(([0-9.]+ ?){5}\)")


@pytest.mark.slow
def test_each_call_has_a_ratio() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.builds", REPOSITORY, "5"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )

    *rows, last = done.stdout.splitlines()
    found = [match[1] for match in map(ROW.fullmatch, rows) if match is not None]
    places = ("same processor", "other processor")
    assert found == [f"{call}, {place}" for place in places for call in ("fstat", "stat")]
    assert last.startswith("load ")


def test_a_checkout_without_a_build_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.builds", tmp_path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert done.returncode != 0
    assert f"{tmp_path} has no .venv" in done.stderr
