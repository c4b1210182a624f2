"""An upgrade of the service: the new plugin's processes take over mounted volumes, under load.

The service manager is a fake, tests/support/fakes/service_manager.py; everything else is real. Two
programs differ by their identity alone.
"""

import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.mounting.test_adoption import User
from tests.support.fakes.service_manager import ServiceManager
from tests.support.tools.driver import restricted
from tests.support.tools.processes import lives, wait_until
from tests.support.tools.service import Service

pytestmark = pytest.mark.full

ENDS = pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
UPGRADES = int(os.environ.get("PASSFS_UPGRADES", "2"))
KILLS = int(os.environ.get("PASSFS_UPGRADE_KILLS", "2"))
LONGEST_S = 0.6
DONE_S = 30.0
# Waits for the lock of the file, and ends once it has the lock.
WAITER = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print(flush=True)
fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
"""


@pytest.fixture
def service(tmp_path: Path, manager: ServiceManager) -> Iterator[Service]:
    """A plugin with the unit's capabilities, and the volume `vol`, which has a standby."""
    service = Service(tmp_path, manager, within=restricted())
    service.start()
    service.call("VolumeDriver.Create", Name="vol", Opts={"standby": "on"})
    service.call("VolumeDriver.Mount", Name="vol", ID="i")
    try:
        yield service
        if service.process is None:
            service.start()
        service.call("VolumeDriver.Unmount", Name="vol", ID="i")
        assert manager.wait_for_count(0), manager.stored
    finally:
        if service.process is not None:
            service.end(signal.SIGTERM)


def status(service: Service, name: str = "vol") -> dict[str, Any]:
    answer = service.call("VolumeDriver.Get", Name=name)["Volume"]["Status"]
    assert isinstance(answer, dict)
    return answer


def has_ended(pid: int) -> bool:
    return not lives(pid)


def file_in(service: Service) -> Path:
    return service.directory / "mounts" / "vol" / "file"


def programs(service: Service) -> dict[str, Any]:
    """Return the reply once each older program has been replaced, if it could."""
    limit = time.monotonic() + DONE_S
    while not (reply := service.call("Passfs.Programs"))["Done"]:
        assert time.monotonic() < limit, service.log.read_text()
        time.sleep(0.02)
    assert isinstance(reply, dict)
    return reply


def upgraded(service: Service, program: str) -> dict[str, Any]:
    """Start the service with another program, and return what serves the volume `vol`."""
    service.environment["PROGRAM"] = program
    service.start()
    (volume,) = programs(service)["Volumes"]
    assert isinstance(volume, dict)
    return volume


@ENDS
def test_users_do_not_notice_upgrades(service: Service, end: signal.Signals) -> None:
    with closing(User(file_in(service))) as user:
        for number in range(UPGRADES):
            worker = status(service)["worker_pid"]
            service.end(end)
            served = upgraded(service, f"program {number}")
            assert served["Older"] == "", service.log.read_text()
            assert served["Milliseconds"] > 0
            assert user.makes_progress()
            after = status(service)
            assert (after["standby"], "program" in after) == ("ready", False)
            assert after["worker_pid"] != worker
            wait_until(partial(has_ended, worker))


def test_a_worker_of_the_new_program_may_die(service: Service) -> None:
    with closing(User(file_in(service))) as user:
        service.end(signal.SIGTERM)
        assert upgraded(service, "another")["Older"] == ""
        before = status(service)
        os.kill(before["worker_pid"], signal.SIGKILL)
        assert user.makes_progress()
        wait_until(lambda: status(service)["worker_pid"] != before["worker_pid"])
        assert status(service)["deaths"] == before["deaths"] + 1


def test_a_caller_that_waits_for_a_lock_waits_on(service: Service) -> None:
    file = file_in(service)
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
    with file.open("w+b") as held:
        fcntl.fcntl(held, fcntl.F_OFD_SETLKW, lock)
        waiter = subprocess.Popen(
            [sys.executable, "-I", "-c", WAITER, str(file)], stdout=subprocess.PIPE
        )
        assert waiter.stdout is not None
        with waiter.stdout:
            waiter.stdout.readline()
            time.sleep(0.1)  # until it waits, or it would only have to wait later
            service.end(signal.SIGTERM)
            assert upgraded(service, "another")["Older"] == ""
            with pytest.raises(subprocess.TimeoutExpired):
                waiter.wait(0.2)
            held.close()
            assert waiter.wait(DONE_S) == 0


def test_a_plugin_may_be_killed_at_any_time_of_an_upgrade(service: Service) -> None:
    moments = random.Random()  # noqa: S311 - no secret
    with closing(User(file_in(service))) as user:
        for number in range(KILLS):
            service.end(signal.SIGKILL)
            service.environment["PROGRAM"] = f"program {number}"
            service.launch()
            time.sleep(moments.uniform(0.2, LONGEST_S))
            service.end(signal.SIGKILL)
            assert user.makes_progress(), service.log.read_text()
            assert upgraded(service, f"program {number}")["Older"] == ""
            assert user.makes_progress(), service.log.read_text()
            assert status(service)["standby"] == "ready"


def test_a_volume_without_a_standby_stays_with_its_program(service: Service) -> None:
    service.call("VolumeDriver.Create", Name="alone", Opts={"standby": "off"})
    service.call("VolumeDriver.Mount", Name="alone", ID="i")
    worker = status(service, "alone")["worker_pid"]
    service.end(signal.SIGTERM)
    service.environment["PROGRAM"] = "another"
    service.start()
    assert {*outcomes(service)} == {("vol", ""), ("alone", "it has no standby")}
    assert status(service, "alone")["program"] == "older: it has no standby"
    assert status(service, "alone")["worker_pid"] == worker
    service.call("VolumeDriver.Unmount", Name="alone", ID="i")
    service.call("VolumeDriver.Mount", Name="alone", ID="i")
    assert "program" not in status(service, "alone")
    service.call("VolumeDriver.Unmount", Name="alone", ID="i")


def test_a_detached_mount_in_use_is_listed(service: Service) -> None:
    listed = ("vol", "the mount is detached, and still in use")
    with file_in(service).open("w"):
        service.call("VolumeDriver.Unmount", Name="vol", ID="i")
        service.end(signal.SIGTERM)
        service.environment["PROGRAM"] = "another"
        service.start()
        assert outcomes(service) == [listed]
        service.call("VolumeDriver.Mount", Name="vol", ID="i")
        assert outcomes(service) == [("vol", ""), listed]
    wait_until(lambda: outcomes(service) == [("vol", "")])


def outcomes(service: Service) -> list[tuple[str, str]]:
    return [(volume["Name"], volume["Older"]) for volume in programs(service)["Volumes"]]
