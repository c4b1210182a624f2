"""The work of threads on the tables, under ThreadSanitizer and AddressSanitizer."""

from pathlib import Path

import pytest

from tests.support.tools.core_builds import LIBRARIES, Build

PROGRAM = """
from tests.passthrough.core.probe_stress import stress
from tests.passthrough.core.probe_tables import Probe
for budget in (1 << 40, 5000, 0):
    probe = Probe(budget=budget, handle_bytes=24)
    assert stress(probe.fd, 4, 100_000) == 0
    probe.recover()
    assert probe.live() == [1]
"""

MODULES = (
    *("counters", "memory", "notify", "places", "recent", "settle", "shared", "stress"),
    *("sweep", "tables"),
)
"""The modules that the program needs, and what they need."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIBRARIES)
def test_threads_find_no_race_and_no_wrong_access(kind: str, tmp_path: Path) -> None:
    build = Build(tmp_path, kind, *MODULES)

    done = build.run("-c", PROGRAM)

    assert (done.returncode, done.stderr) == (0, "")
