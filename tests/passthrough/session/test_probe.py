"""probe.py: INIT of a connection that nothing is mounted for."""

import os
from pathlib import Path

import pytest

from passthrough.linux import mountinfo
from passthrough.session import negotiation, probe


def test_the_kernel_offers_what_a_session_needs_and_nothing_is_left() -> None:
    before = mountinfo.read()
    offer = probe.offered()
    assert (offer.major, offer.minor >= 40) == (7, True)
    assert negotiation.REQUIRED & ~offer.flags == 0
    assert mountinfo.read() == before


def test_a_device_that_is_not_fuse_is_refused() -> None:
    with pytest.raises(OSError, match="fsconfig"):
        probe.offered(os.devnull)


def test_a_missing_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        probe.offered(str(tmp_path / "fuse"))
