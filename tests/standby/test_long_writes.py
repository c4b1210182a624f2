"""A worker dies while it reads the first long WRITE of a volume.

The kernel gives a killed process no page to read into, and would answer the caller with EIO. So the
pages are there before, see passthrough/core/device.pyx.
"""

import os
import random
import time
from pathlib import Path

import pytest

from tests.standby.volume import Volume, is_alive, kill, volume
from tests.support.tools.callers import USER
from tests.support.tools.files import public_directory
from tests.support.tools.processes import wait_until

pytestmark = [pytest.mark.full, pytest.mark.slow]

OPTIONS = {"session": "kernel", "standby": "on", "passthrough": "off"}
VOLUMES = 10
"""Without the pages, 4 of 10 kills met a caller that got EIO."""
LENGTH, WRITES = 1 << 20, 4
LATEST_S = 0.0012
LIMIT_S = 20.0


@pytest.mark.parametrize("writeback", ["true", "false"])
def test_no_caller_gets_an_error(writeback: str) -> None:
    options = OPTIONS | {"writeback": writeback, "allow_direct_io": "false"}
    for seed in range(VOLUMES):
        with public_directory() as base, volume(base, options) as served:
            with served.served.limited(LIMIT_S):
                die_while_it_writes(served, random.Random(seed))  # noqa: S311 - reproducible
            assert served.whole().deaths == 1


def die_while_it_writes(served: Volume, chance: random.Random) -> None:
    """Kill the worker at some time while a user writes, and compare the file."""
    worker = served.whole().worker_pid
    served.served.source.chmod(0o777)
    data = chance.randbytes(LENGTH)
    arrived, begun = os.pipe()

    def write() -> None:
        fd = os.open(Path(served.served.mountpoint, "file"), os.O_CREAT | os.O_RDWR)
        os.write(begun, b"1")
        for number in range(WRITES):
            assert os.pwrite(fd, data, number * LENGTH) == LENGTH
        os.fsync(fd)
        os.close(fd)

    try:
        with USER.start(write) as call:
            os.read(arrived, 1)
            time.sleep(chance.uniform(0, LATEST_S))
            assert kill(worker)
            call.result(LIMIT_S)
        wait_until(lambda: not is_alive(worker))  # a killed process may wait for a processor
    finally:
        os.close(arrived)
        os.close(begun)
    assert (served.served.source / "file").read_bytes() == data * WRITES
