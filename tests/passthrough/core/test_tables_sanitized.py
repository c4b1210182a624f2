"""The work of threads on the tables, under ThreadSanitizer and AddressSanitizer."""

import pytest

from tests.support.tools.core_builds import BUILD_LIMIT_S, Build

PROGRAM = """
from tests.passthrough.core.probe_stress import stress
from tests.passthrough.core.probe_tables import Probe
for budget in (1 << 40, 5000, 0):
    probe = Probe(budget=budget, handle_bytes=24)
    assert stress(probe.fd, 4, 100_000) == 0
    probe.recover()
    assert probe.live() == [1]
"""


@pytest.mark.slow
@pytest.mark.timeout(BUILD_LIMIT_S)
def test_threads_find_no_race_and_no_wrong_access(sanitized: Build) -> None:
    done = sanitized.run("-c", PROGRAM)

    assert (done.returncode, done.stderr) == (0, "")
