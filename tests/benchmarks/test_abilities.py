"""The table of docs/comparison.md has what the trials find, with the peers of Debian 12."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "comparison.md"
LIMIT_S = 120.0


@pytest.mark.full
@pytest.mark.slow
def test_the_document_has_what_the_trials_find() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.abilities"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    section = DOCUMENT.read_text().partition("\n## What works\n")[2].partition("\n## ")[0]
    documented = [line for line in section.splitlines() if line.startswith("|")]

    assert done.stdout.splitlines() == documented
