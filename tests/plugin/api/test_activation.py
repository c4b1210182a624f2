"""Activate is answered at once, beside 500 volumes and a Mount that hangs."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.fakes.hung import HungSource, is_opening
from tests.support.tools.mounts import mounted_on
from tests.support.tools.service import Service, started

pytestmark = pytest.mark.full

LIMIT_S = 0.1
VOLUMES = 500


def activation_s(service: Service) -> float:
    """Return the time of an activation: the best of five, as other programs use the machine too."""
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        assert service.call("Plugin.Activate") == {"Implements": ["VolumeDriver"]}
        seconds.append(time.monotonic() - began)
    return min(seconds)


def test_activate_is_answered_within_100_ms_beside_a_mount_that_hangs(tmp_path: Path) -> None:
    options = {"source": str(tmp_path / "source" / "far")}
    # In memory, because 500 synchronised writes to a disk take long.
    with ExitStack() as stack:
        stack.enter_context(mounted_on(tmp_path, "tmpfs"))
        Path(options["source"]).mkdir(parents=True)
        threads = stack.enter_context(ThreadPoolExecutor())
        service = stack.enter_context(started(tmp_path))
        for number in range(VOLUMES):
            assert service.call("VolumeDriver.Create", Name=f"v{number}", Opts=options) == {}
        assert activation_s(service) < LIMIT_S

        assert service.process is not None
        with HungSource(tmp_path / "source"):
            mounting = threads.submit(service.call, "VolumeDriver.Mount", Name="v0", ID="i")
            while not is_opening(service.process.pid):
                assert not mounting.done(), mounting.result()
                time.sleep(0.01)
            assert activation_s(service) < LIMIT_S
            assert not mounting.done()
            assert len(service.call("VolumeDriver.List")["Volumes"]) == VOLUMES
        assert "'source'" in mounting.result()["Err"]
