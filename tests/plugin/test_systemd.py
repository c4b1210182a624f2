"""packaging/: the service under a real systemd, with the installed units."""

import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from passthrough.worker.control import GUARDS
from plugin.admin.address import TcpAddress
from plugin.mounting.fd_store import KINDS
from tests.passthrough.core.probe_counts import PARKED, THREADS, WAITS
from tests.support.tools.driver import UNIT
from tests.support.tools.processes import wait_until
from tests.support.tools.scraping import free_port, page
from tests.support.tools.service import Service
from tests.support.tools.systemd import Systemd

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
RESTARTS = [["restart"], ["kill", "--signal=KILL", "--kill-who=main"], ["restart"]]


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """Start systemd, which listens for the service; the first request starts the service."""
    with Systemd(tmp_path) as systemd:
        systemd.control("start", "passfs.socket")
        yield systemd


def mounted(service: Service) -> dict[str, Any]:
    """Make the volume `vol`, mount it, and return its status."""
    service.call("VolumeDriver.Create", Name="vol")
    service.call("VolumeDriver.Mount", Name="vol", ID="i")
    return status(service)


def status(service: Service) -> dict[str, Any]:
    answer = service.call("VolumeDriver.Get", Name="vol")["Volume"]["Status"]
    assert isinstance(answer, dict)
    return answer


def test_volumes_stay_mounted_while_the_service_restarts(tmp_path: Path, systemd: Systemd) -> None:
    service = Service(tmp_path)
    before = mounted(service)
    assert before["mounted"]
    assert stat.S_IMODE((tmp_path / "p.sock").stat().st_mode) == 0o660
    file = systemd.inside(tmp_path / "mounts" / "vol") / "file"
    with file.open("w+b", buffering=0) as used:
        processes = {systemd.show("MainPID")}
        for words in RESTARTS:
            systemd.control(*words, "passfs.service")
            used.write(b"more\n")
            assert status(service) == before
            assert systemd.show("NFileDescriptorStore") == str(len(KINDS))
            processes.add(systemd.show("MainPID"))
        assert len(processes) == 1 + len(RESTARTS)
        assert file.read_bytes() == b"more\n" * len(RESTARTS)
    service.call("VolumeDriver.Unmount", Name="vol", ID="i")
    while systemd.show("NFileDescriptorStore") != "0":
        assert not status(service)["mounted"]
    assert "WARNING" not in service.log.read_text()


def test_an_upgrade_is_noticed_by_no_user(tmp_path: Path, systemd: Systemd) -> None:
    """`passfs upgrade` of another program; its workers are those of this one."""
    service = Service(tmp_path)
    before = mounted(service)
    new = tmp_path / "new"
    for package in ("plugin", "passthrough"):
        shutil.copytree(ROOT / package, new / package, ignore=shutil.ignore_patterns("*.c"))
    with (new / "passthrough" / "__init__.py").open("a") as module:
        module.write("# another program\n")
    (new / UNIT.parent.name).mkdir()
    unit = systemd.unit.read_text().replace(f"PYTHONPATH={ROOT}", f"PYTHONPATH={new}")
    (new / UNIT.parent.name / UNIT.name).write_text(unit)
    (tmp_path / "bin").mkdir()
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.write_text(f'#!/bin/sh\nexec {shutil.which("systemctl")} --user "$@"\n')
    systemctl.chmod(0o755)

    file = systemd.inside(tmp_path / "mounts" / "vol") / "file"
    with file.open("w+b", buffering=0) as used:
        output = systemd.run(
            *(sys.executable, "-m", "plugin", "upgrade", "--tree", str(new)),
            PATH=f"{systemctl.parent}:{os.environ['PATH']}",
            PYTHONPATH=str(new),
        )
        assert "vol: taken over in " in output
        used.write(b"more\n")
        after = status(service)
        assert after["worker_pid"] != before["worker_pid"]
        assert after == before | {"worker_pid": after["worker_pid"]}
        wait_until(lambda: systemd.show("NFileDescriptorStore") == str(len(KINDS)))
        systemd.control("restart", "passfs.service")
        assert status(service) == after
    assert file.read_bytes() == b"more\n"


def test_the_unit_allows_the_threads_of_2000_volumes(systemd: Systemd) -> None:
    volumes = int(systemd.show("FileDescriptorStoreMax")) // len(KINDS)
    # Of the worker the main thread, and one that answers requests; each guard has one thread.
    busy = 2 + PARKED + GUARDS
    most = 1 + THREADS + PARKED + WAITS

    assert (volumes, busy, most) == (2048, 12, 1289)
    assert 2_000 * busy + 9 * most <= int(systemd.show("TasksMax"))


def test_a_stop_ends_the_workers_and_the_next_start_unmounts(
    tmp_path: Path, systemd: Systemd
) -> None:
    service = Service(tmp_path)
    worker = mounted(service)["worker_pid"]
    target = systemd.inside(tmp_path / "mounts" / "vol")
    assert os.listdir(target) == []
    systemd.control("stop", "passfs.socket", "passfs.service")
    while systemd.inside(Path(f"/proc/{worker}")).exists():
        assert systemd.show("NFileDescriptorStore") == "0"
    assert not (tmp_path / "p.sock").exists()
    with pytest.raises(OSError, match="not connected"):
        os.listdir(target)
    systemd.control("start", "passfs.socket", "passfs.service")
    assert not status(service)["mounted"]
    assert not target.exists()
    assert "WARNING" not in service.log.read_text()


def test_metrics_at_a_tcp_address_need_a_drop_in(tmp_path: Path, systemd: Systemd) -> None:
    """The unit allows Unix sockets alone; the drop-in is that of docs/metrics.md."""
    document = (ROOT / "docs" / "metrics.md").read_text()
    (families,) = re.findall(r"^    (RestrictAddressFamilies=.*)$", document, re.MULTILINE)
    address = TcpAddress("127.0.0.1", free_port())
    refusal = f"no metrics at {address}: [Errno {errno.EAFNOSUPPORT}]"
    service = Service(tmp_path)
    drop_in = systemd.unit.with_name(f"{systemd.unit.name}.d") / "own.conf"
    drop_in.parent.mkdir()
    for line in ("", families):
        drop_in.write_text(f"[Service]\nEnvironment=PASSFS_METRICS={address}\n{line}\n")
        systemd.control("daemon-reload")
        systemd.control("restart", "passfs.service")
        service.call("VolumeDriver.Capabilities")
        assert (refusal in service.log.read_text()) == (not line)
        service.log.write_text("")
    wait_until(lambda: answers(address))


def answers(address: TcpAddress) -> bool:
    try:
        return page(address, "/health").status == HTTPStatus.OK
    except ConnectionRefusedError:
        return False
