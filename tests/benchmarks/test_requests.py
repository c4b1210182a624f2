"""The count of the kernel's requests to one mount, and to no other."""

import os
from pathlib import Path

import pytest

from benchmarks import requests
from tests.support.tools.mounted import mounted

CALLS = 100


def test_the_requests_of_one_mount_are_counted(base: Path) -> None:
    """With attr_timeout=0, each fstat(2) causes one GETATTR."""
    one, other = base / "one", base / "other"
    one.mkdir()
    other.mkdir()
    with (
        mounted(one, {"attr_timeout": "0"}) as first,
        mounted(other, {"attr_timeout": "0"}) as second,
        requests.counted(str(first.mountpoint)) as count,
    ):
        if (before := count()) is None:
            pytest.skip("this kernel, or a container's policy, does not count requests")
        for mount in (first, second):
            fd = os.open(mount.mountpoint, os.O_PATH)
            for _ in range(CALLS):
                os.fstat(fd)
            os.close(fd)
        found = (count() or 0) - before

    # A name on the way to the mount point is no request of the mount.
    assert CALLS <= found <= CALLS + 2


def test_without_a_mount_nothing_is_counted(base: Path) -> None:
    with requests.counted(str(base)) as count:
        assert count() is None
