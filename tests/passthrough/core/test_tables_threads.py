import pytest

from tests.passthrough.core.probe_stress import measure, stress
from tests.passthrough.core.probe_tables import Probe
from tests.support.tools.core_tables import check


@pytest.mark.parametrize("budget", [1 << 40, 5_000, 0], ids=["descriptors", "both", "handles"])
def test_threads_lose_no_descriptor_and_no_inode(budget: int) -> None:
    probe = Probe(budget=budget, handle_bytes=24)
    assert stress(probe.fd, 4, 200_000) == 0
    probe.recover()
    assert probe.live() == [1]
    check(probe)


def test_the_tables_are_measured() -> None:
    probe = Probe()
    assert all(nanoseconds > 0 for nanoseconds in measure(probe.fd, 10_000))
    probe.recover()
    assert probe.live() == [1]
