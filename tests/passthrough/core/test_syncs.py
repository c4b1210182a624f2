"""Calls that may wait for a disk: when another thread takes over before them."""

from tests.passthrough.core.probe_syncs import FAST, Probe


def synced_fast(probe: Probe) -> bool:
    """Return whether a thread no longer hands over after many fast calls."""
    # A call that is made here may be slow by chance.
    return any(not probe.sync() for _ in range(100 * FAST))


def test_a_thread_hands_over_until_many_calls_were_fast() -> None:
    probe = Probe()

    assert all(probe.sync() for _ in range(FAST))
    assert synced_fast(probe)


def test_a_thread_hands_over_after_a_slow_call() -> None:
    probe = Probe()
    assert synced_fast(probe)

    probe.sync(slow=True)

    assert all(probe.sync() for _ in range(FAST))
    assert synced_fast(probe)
