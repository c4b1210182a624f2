"""A restart of the service: workers and mounts go on, and the next plugin adopts them.

The service manager is a fake, tests/support/fakes/service_manager.py; everything else is real.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from passthrough.worker.fuse_mount import mount as attach, unmount
from passthrough.worker.handover import Report, encode
from plugin.mounting.fd_store import KINDS, NEEDED
from plugin.mounting.mountpoints import mounts_below
from plugin.volume import MountRecord, VolumeName
from plugin.volumes.registry import Registry
from tests.support.fakes.service_manager import ServiceManager
from tests.support.tools.mounts import mounts_at
from tests.support.tools.options import effective
from tests.support.tools.processes import kill_all
from tests.support.tools.records import record
from tests.support.tools.service import Service, request, started

pytestmark = pytest.mark.full

END_S = 10.0
ENDS = pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])

# Writes and reads an open file in a loop. It answers each byte on standard input with the number of
# rounds. It ends when standard input closes, or with a traceback at the first error.
LOOP = """
import os, select, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
rounds = 0
while True:
    os.pwrite(fd, b"%12d" % rounds, 4096 * (rounds % 64))
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert int(os.pread(fd, 12, 4096 * (rounds % 64))) == rounds
    rounds += 1
    if select.select([0], [], [], 0.001)[0]:
        if not os.read(0, 1):
            break
        os.write(1, b"%d\\n" % rounds)
os.close(fd)
"""


@pytest.fixture
def service(tmp_path: Path, manager: ServiceManager) -> Iterator[Service]:
    """A plugin with the volume `vol`, mounted for `i`; the end unmounts it for all users."""
    with started(tmp_path, manager) as service:
        service.call("VolumeDriver.Create", Name="vol")
        assert mount(service) == str(target(service))
        try:
            yield service
        finally:
            if service.process is None:
                service.start()
            for _ in range(status(service)["references"]):
                service.call("VolumeDriver.Unmount", Name="vol", ID="i")
            assert manager.wait_for_count(0), manager.stored
            assert service.mounted() == []


def mount(service: Service) -> str:
    mountpoint = service.call("VolumeDriver.Mount", Name="vol", ID="i")["Mountpoint"]
    assert isinstance(mountpoint, str)
    return mountpoint


def target(service: Service) -> Path:
    return service.directory / "mounts" / "vol"


def status(service: Service) -> dict[str, Any]:
    answer = service.call("VolumeDriver.Get", Name="vol")["Volume"]["Status"]
    assert isinstance(answer, dict)
    return answer


def device(service: Service) -> int:
    (entry,) = mounts_at(target(service))
    return entry.device


def has_ended(pid_fd: int, within_s: float = END_S) -> bool:
    return bool(select.select([pid_fd], [], [], within_s)[0])


@contextmanager
def worker_of(service: Service) -> Iterator[int]:
    """Yield a process descriptor of the worker."""
    pid_fd = os.pidfd_open(status(service)["worker_pid"])
    try:
        yield pid_fd
    finally:
        os.close(pid_fd)


class User:
    """A process that uses a file of a volume without pause."""

    def __init__(self, file: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", LOOP, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self.rounds()

    def rounds(self) -> int:
        """Return the number of rounds until now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"?")
        assert select.select([self._process.stdout], [], [], END_S)[0], "the user hangs"
        return int(self._process.stdout.readline())

    def makes_progress(self) -> bool:
        """Return whether the process makes progress."""
        before, limit = self.rounds(), time.monotonic() + END_S
        while self.rounds() < before + 5:
            if time.monotonic() > limit:
                return False
        return True

    def close(self) -> None:
        """End the process, which must not have had an error."""
        _, errors = self._process.communicate(timeout=END_S)
        assert (self._process.returncode, errors) == (0, b"")


@ENDS
def test_users_of_a_mount_work_on_through_two_restarts(
    service: Service, end: signal.Signals
) -> None:
    """The second plugin must store a mount that it has adopted itself."""
    with closing(User(target(service) / "file")) as user:
        before = status(service), device(service)
        for _ in "12":
            service.end(end)
            assert user.makes_progress()
            service.start()
            assert (status(service), device(service)) == before
            assert user.makes_progress()
            assert mount(service) == str(target(service)), "a whole mount stays"
            service.call("VolumeDriver.Unmount", Name="vol", ID="i")
    assert before[0]["mounted"]
    assert before[0]["references"] == 1
    (target(service) / "more").write_text("x")
    assert "WARNING" not in service.log.read_text()


@ENDS
def test_a_worker_with_a_standby_may_die_during_a_restart(
    service: Service, end: signal.Signals
) -> None:
    def described() -> Any:
        return service.call("VolumeDriver.Get", Name="vol2")["Volume"]["Status"]

    service.call("VolumeDriver.Create", Name="vol2", Opts={"standby": "on"})
    service.call("VolumeDriver.Mount", Name="vol2", ID="i")
    with closing(User(target(service).with_name("vol2") / "file")) as user:
        worker = described()["worker_pid"]
        service.end(end)
        os.kill(worker, signal.SIGKILL)
        assert user.makes_progress()
        service.start()
        after = described()
        assert (after["mounted"], after["deaths"], after["standby"]) == (True, 1, "ready")
        assert after["worker_pid"] not in {0, worker}
        os.kill(after["worker_pid"], signal.SIGKILL)
        assert user.makes_progress()
        assert described()["deaths"] == 2
    service.call("VolumeDriver.Unmount", Name="vol2", ID="i")


@ENDS
def test_the_next_plugin_can_unmount(
    service: Service, manager: ServiceManager, end: signal.Signals
) -> None:
    with worker_of(service) as worker:
        service.end(end)
        service.start()
        service.call("VolumeDriver.Unmount", Name="vol", ID="another")
        assert service.mounted() == ["vol"]
        service.call("VolumeDriver.Unmount", Name="vol", ID="i")
        assert service.mounted() == []
        assert has_ended(worker)
    assert list((service.directory / "mounts").iterdir()) == []
    assert manager.wait_for_count(0)


@ENDS
def test_the_report_and_the_end_of_a_worker_are_known_after_a_restart(
    service: Service, end: signal.Signals
) -> None:
    """The report is in Status, the end in the log."""
    options = status(service)["options"]
    service.end(end)
    service.start()
    assert status(service)["options"] == options
    with worker_of(service) as worker:
        kill_all(status(service)["worker_pid"])
        assert has_ended(worker)
    while status(service)["mounted"]:
        time.sleep(0.01)
    assert "the volume fails until it is mounted again" in service.log.read_text()
    # ECONNABORTED, if the request comes before the service manager has closed /dev/fuse.
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.listdir(target(service))
    mount(service)
    assert os.listdir(target(service)) == []


@ENDS
def test_a_worker_that_dies_during_a_restart_is_a_lost_mount(
    service: Service, manager: ServiceManager, end: signal.Signals
) -> None:
    with worker_of(service) as worker:
        pid = status(service)["worker_pid"]
        service.end(end)
        kill_all(pid)
        assert has_ended(worker)
    service.start()
    assert manager.wait_for_count(0)
    after = status(service)
    assert (after["mounted"], after["references"], after["worker_pid"]) == (False, 1, 0)
    assert after["error"]
    assert service.mounted() == []
    mount(service)
    assert service.mounted() == ["vol"]
    assert os.listdir(target(service)) == []


@ENDS
def test_a_mount_that_is_unmounted_during_a_restart_serves_its_last_user(
    service: Service, manager: ServiceManager, end: signal.Signals
) -> None:
    with closing(User(target(service) / "file")) as user, worker_of(service) as worker:
        service.end(end)
        unmount(target(service))
        service.start()
        assert not status(service)["mounted"]
        mount(service)
        assert user.makes_progress()
        assert (target(service) / "file").exists()
        assert manager.wait_for_count(2 * len(KINDS))
        service.end(end)
        service.start()
        assert user.makes_progress()
        assert status(service)["mounted"]
        assert not has_ended(worker, 0)
        user.close()
        assert has_ended(worker)
    assert manager.wait_for_count(len(KINDS))


@pytest.mark.parametrize("lost", NEEDED)
def test_a_mount_with_a_lost_descriptor_is_made_anew(
    service: Service, manager: ServiceManager, lost: str
) -> None:
    with worker_of(service) as worker:
        manager.drop(f"{lost}1")
        service.end(signal.SIGKILL)
        service.start()
        assert not status(service)["mounted"]
        assert service.mounted() == []
        assert has_ended(worker)
    assert manager.wait_for_count(0)
    mount(service)
    assert sorted(manager.stored) == [f"{kind}2" for kind in sorted(KINDS)]


def test_a_mount_of_an_older_passfs_without_a_control_page_goes_on(
    service: Service, manager: ServiceManager
) -> None:
    manager.drop("control1")
    with closing(User(target(service) / "file")) as user:
        service.end(signal.SIGKILL)
        service.start()
        assert status(service)["mounted"]
        assert user.makes_progress()


def test_lost_descriptors_cost_only_their_own_volumes(
    service: Service, manager: ServiceManager
) -> None:
    names = [f"v{number}" for number in range(2, 10)]
    for name in names:
        service.call("VolumeDriver.Create", Name=name)
        service.call("VolumeDriver.Mount", Name=name, ID="i")
    service.end(signal.SIGTERM)
    manager.drop(*(f"{kind}{number}" for number in range(2, 10, 2) for kind in KINDS[number % 3 :]))
    service.start()
    mounted = {
        volume["Name"]: volume["Status"]["mounted"]
        for volume in service.call("VolumeDriver.List")["Volumes"]
    }
    assert mounted == {"vol": True} | {name: bool(int(name[1:]) % 2) for name in names}
    assert service.mounted() == sorted(name for name, is_mounted in mounted.items() if is_mounted)
    for name in names:
        service.call("VolumeDriver.Unmount", Name=name, ID="i")


def test_a_stored_mount_without_a_record_is_cleared_away(
    service: Service, manager: ServiceManager
) -> None:
    """As if the plugin had been killed between storing descriptors and recording the mount."""
    with worker_of(service) as worker:
        service.end(signal.SIGKILL)
        with Registry.open(service.directory / "data") as registry:
            registry.write_references(registry.records[0].name, {})
        service.start()
        assert has_ended(worker)
    assert manager.wait_for_count(0)
    assert service.mounted() == []
    assert not status(service)["mounted"]


def test_the_workers_end_when_the_service_is_stopped(
    service: Service, manager: ServiceManager
) -> None:
    """The service manager closes the descriptors of a service that is stopped for good."""
    with worker_of(service) as worker:
        assert service.end(signal.SIGTERM)[0] == 0
        assert not has_ended(worker, 0.2)
        manager.drop(*manager.stored)
        assert has_ended(worker)
    assert service.mounted() == ["vol"], "a dead mount stays until the next start"
    with pytest.raises(OSError, match="not connected"):
        os.listdir(target(service))
    service.start()
    assert service.mounted() == []


def mount_without_answer(service: Service, manager: ServiceManager) -> None:
    """Mount the volume `vol2` for `i` while the service manager does not answer."""
    service.call("VolumeDriver.Create", Name="vol2")
    manager.unresponsive = True
    service.call("VolumeDriver.Mount", Name="vol2", ID="i")
    manager.unresponsive = False


def test_a_mount_succeeds_although_the_service_manager_does_not_answer(
    service: Service, manager: ServiceManager
) -> None:
    """The mount ends with the plugin, as it would without a service manager."""
    mount_without_answer(service, manager)
    assert service.mounted() == ["vol", "vol2"]
    assert "volume vol2: its mount will end with the plugin" in service.log.read_text()
    assert service.end(signal.SIGTERM)[0] == 0
    assert service.mounted() == ["vol"]
    service.start()
    assert manager.wait_for_count(len(KINDS))
    service.call("VolumeDriver.Unmount", Name="vol2", ID="i")


def test_the_next_mount_stores_descriptors_that_were_not_stored(
    service: Service, manager: ServiceManager
) -> None:
    mount_without_answer(service, manager)
    service.call("VolumeDriver.Mount", Name="vol2", ID="j")
    assert manager.wait_for_count(2 * len(KINDS))
    service.end(signal.SIGTERM)
    assert service.mounted() == ["vol", "vol2"]
    service.start()
    for mount_id in "ij":
        service.call("VolumeDriver.Unmount", Name="vol2", ID=mount_id)


def test_a_source_that_is_not_allowed_any_more_gets_no_further_users(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its present users go on."""
    source = tmp_path / "source"
    source.mkdir()
    service.call("VolumeDriver.Create", Name="vol2", Opts={"source": str(source)})
    service.call("VolumeDriver.Mount", Name="vol2", ID="i")
    service.end(signal.SIGTERM)
    monkeypatch.setenv("PASSFS_ALLOWED_SOURCES", str(tmp_path / "elsewhere"))
    service.start()
    refused = service.call("VolumeDriver.Mount", Name="vol2", ID="j")["Err"]
    assert "in none of the directories that the administrator of this plugin allows" in refused
    status = service.call("VolumeDriver.Get", Name="vol2")["Volume"]["Status"]
    assert (status["mounted"], status["references"]) == (True, 1)
    assert "Err" not in service.call("VolumeDriver.Mount", Name="vol", ID="i")
    service.end(signal.SIGTERM)
    monkeypatch.delenv("PASSFS_ALLOWED_SOURCES")
    service.start()
    for mount_id in "ji":
        assert "Err" not in service.call("VolumeDriver.Mount", Name="vol2", ID=mount_id)
    for mount_id in "jii":
        service.call("VolumeDriver.Unmount", Name="vol2", ID=mount_id)


@ENDS
@pytest.mark.parametrize("anew", [False, True], ids=["unmounted", "unmounted, mounted anew"])
def test_an_open_file_of_an_unmounted_volume_prevents_its_removal(
    service: Service, manager: ServiceManager, end: signal.Signals, anew: bool
) -> None:
    service.call("VolumeDriver.Create", Name="vol2")
    service.call("VolumeDriver.Mount", Name="vol2", ID="i")
    with closing(User(target(service).with_name("vol2") / "file")) as user:
        service.call("VolumeDriver.Unmount", Name="vol2", ID="i")
        if anew:
            service.call("VolumeDriver.Mount", Name="vol2", ID="j")
        service.end(end)
        with Registry.open(service.directory / "data") as registry:
            devices = [row.device for row in registry.mount_records if row.volume == "vol2"]
            # A detached mount has no device: a later mount may get the same number.
            assert [bool(device) for device in devices] == ([False, True] if anew else [True])
        service.start()
        if anew:
            service.call("VolumeDriver.Unmount", Name="vol2", ID="j")
        refused = service.call("VolumeDriver.Remove", Name="vol2")["Err"]
        assert "its files are in use" in refused
        assert user.makes_progress()
    assert manager.wait_for_count(len(KINDS))
    assert "Err" not in service.call("VolumeDriver.Remove", Name="vol2")


def test_the_status_shows_the_options_in_force_for_the_mount(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They applied when the mount was made; later defaults apply from the next mount on."""
    service.end(signal.SIGTERM)
    monkeypatch.setenv("PASSFS_DEFAULT_OPTIONS", "readonly")
    service.start()
    assert status(service)["options"]["readonly"] == "false"
    (target(service) / "file").touch()
    service.call("VolumeDriver.Unmount", Name="vol", ID="i")
    assert status(service)["options"]["readonly"] == "true"
    mount(service)
    assert status(service)["options"]["readonly"] == "true"
    with pytest.raises(OSError, match="Read-only"):
        (target(service) / "file").touch()


def test_the_plugin_notifies_the_service_manager_of_its_start_and_end(
    service: Service, manager: ServiceManager
) -> None:
    assert manager.wait_for_state("READY=1")
    service.end(signal.SIGTERM)
    assert manager.wait_for_state("STOPPING=1")
    assert manager.states == ["READY=1", "STOPPING=1"]


def test_a_request_during_a_restart_is_answered_after_it(tmp_path: Path) -> None:
    """If the service manager listens, the socket stays, and connections wait in its queue."""
    with (
        ServiceManager(tmp_path, tmp_path / "p.sock") as manager,
        started(tmp_path, manager) as service,
    ):
        service.end(signal.SIGTERM)
        with closing(service.connect()) as client:
            client.sendall(request("VolumeDriver.Get", Name="none"))
            service.start()
            assert client.recv(65536).startswith(b"HTTP/1.1 404")


def leave_mounts(count: int, directory: Path, manager: ServiceManager, worker: int) -> None:
    """Leave *count* mounts as a plugin would, with process *worker* as the worker of all of them.

    Each mount has its own file system, but all their descriptors lead to that one process.
    """
    (directory / "data").mkdir()
    report = encode(Report(serving=True)).decode()
    with Registry.open(directory / "data") as registry, ExitStack() as undo:
        registry._connection.execute("PRAGMA synchronous = OFF")  # faster
        for fd in (*(life := os.pipe()), *(log := os.pipe()), pid_fd := os.pidfd_open(worker)):
            undo.callback(os.close, fd)
        for number in range(1, count + 1):
            target = directory / "mounts" / f"v{number}"
            target.mkdir(parents=True)
            fuse_fd = attach(target, effective())
            manager.store(f"fuse{number}", fuse_fd)
            os.close(fuse_fd)
            manager.store(f"life{number}", life[1])
            manager.store(f"log{number}", log[0])
            manager.store(f"process{number}", pid_fd)
        mounts = mounts_below(directory)
        for number in range(1, count + 1):
            name = VolumeName(f"v{number}")
            (entry,) = mounts[directory / "mounts" / name]
            registry.add(record(name))
            registry.write_references(
                name, {"i": 1}, [MountRecord(name, number, entry.device, report)]
            )


@pytest.mark.alone
def test_500_mounts_are_adopted_within_3_s(tmp_path: Path, manager: ServiceManager) -> None:
    """The time counts until the first request is answered."""
    worker = subprocess.Popen(["sleep", "infinity"])
    service = Service(tmp_path, manager)
    try:
        leave_mounts(500, tmp_path, manager, worker.pid)
        assert service.starts_within(3)
        volumes = service.call("VolumeDriver.List")["Volumes"]
        assert len(volumes) == 500
        assert all(volume["Status"]["mounted"] for volume in volumes)
        assert {volume["Status"]["worker_pid"] for volume in volumes} == {worker.pid}
        assert service.end(signal.SIGTERM)[0] == 0
        assert len(service.mounted()) == 500
        assert manager.wait_for_count(500 * len(NEEDED))
    finally:
        if service.process is not None:
            service.end(signal.SIGKILL)
        worker.kill()
        worker.wait()
        manager.drop(*manager.stored)
        for mountpoint in (tmp_path / "mounts").iterdir():
            unmount(mountpoint)
