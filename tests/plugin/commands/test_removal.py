"""`passfs check` and `passfs rm`, beside a plugin that runs as a process."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from passthrough.worker.fuse_mount import unmount
from plugin.commands import processes
from plugin.volume import VolumeName
from plugin.volumes.registry import Registry
from tests.support.tools.commands import passfs, printed, processes_of, using
from tests.support.tools.processes import wait_until
from tests.support.tools.records import record
from tests.support.tools.service import Service, started

pytestmark = pytest.mark.full

OLD = "../old name"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A plugin with a volume that dockerd cannot remove, because of its name."""
    directory = tmp_path_factory.mktemp("removal")
    (directory / "data" / "volumes" / "old").mkdir(parents=True)
    with Registry.open(directory / "data") as registry:
        registry.add(msgspec.structs.replace(record("old"), name=VolumeName(OLD)))
    with started(directory) as service:
        yield service


def names(service: Service) -> list[str]:
    return [volume["Name"] for volume in service.call("VolumeDriver.List")["Volumes"]]


def test_check_says_that_all_is_well(service: Service) -> None:
    assert printed(service, "check") == "check  registry, disk and mounts agree\n"
    assert json.loads(printed(service, "check", OLD, "--json")) == []


def test_check_prints_each_finding_and_ends_with_1(service: Service) -> None:
    stray = service.directory / "data" / "volumes" / "stray\x1b"
    stray.mkdir()
    done = passfs(service, "check")
    found = passfs(service, "check", "--json")
    stray.rmdir()
    assert (done.returncode, done.stderr, found.returncode) == (1, "", 1)
    lines = done.stdout.splitlines()
    assert lines[0] == r"stray\x1b:"
    assert lines[1].endswith(r"stray\x1b belongs to no volume")
    assert [line.split()[0] for line in lines[1:]] == ["problem", "meaning", "remedy"]
    (finding,) = json.loads(found.stdout)
    assert list(finding) == ["volume", "problem", "meaning", "remedy"]


def test_check_refuses_a_volume_that_does_not_exist(service: Service) -> None:
    done = passfs(service, "check", "none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "passfs check: no such volume: 'none'.\n"


def test_rm_needs_force(service: Service) -> None:
    done = passfs(service, "rm", OLD)
    assert done.returncode == 1
    assert done.stderr.startswith("passfs rm: `docker volume rm` removes a volume.")
    assert OLD in names(service)


def test_rm_removes_a_volume_that_the_engine_has_forgotten(service: Service) -> None:
    """Its reference is of an engine that was killed. Its files are deleted, as by the engine."""
    service.call("VolumeDriver.Mount", Name=OLD, ID="of a killed engine")
    (service.directory / "mounts" / "old" / "file").write_text("content")
    removed = json.loads(printed(service, "rm", OLD, "--force", "--json"))
    assert removed == {"name": OLD, "references": 1}
    assert OLD not in names(service)
    assert not (service.directory / "data" / "volumes" / "old").exists()
    assert passfs(service, "rm", OLD, "--force").stderr == f"passfs rm: no such volume: {OLD!r}.\n"


def test_rm_deletes_no_file_of_a_source(service: Service, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    service.call("VolumeDriver.Create", Name="vol", Opts={"source": str(tmp_path)})
    output = printed(service, "rm", "vol", "--force")
    assert output == "removed             vol\nreferences dropped  none\n"
    assert (tmp_path / "file").read_text() == "kept"
    assert names(service) == []


def test_rm_refuses_a_volume_that_a_container_uses(service: Service) -> None:
    """Nothing has changed afterwards: the volume is not even detached."""
    service.call("VolumeDriver.Create", Name="vol")
    service.call("VolumeDriver.Mount", Name="vol", ID="i")
    with using(service, "vol") as pid:
        done = passfs(service, "rm", "vol", "--force")
    assert done.returncode == 1
    assert done.stderr == (
        f"passfs rm: volume 'vol' is in use: sh {pid}. Stop these containers or programs first.\n"
    )
    assert service.mounted() == ["vol"]
    service.call("VolumeDriver.Unmount", Name="vol", ID="i")
    service.call("VolumeDriver.Remove", Name="vol")


def test_rm_refuses_a_volume_that_a_killed_plugin_has_left(tmp_path: Path) -> None:
    """Its container has a dead mount, which the next plugin does not see."""
    name = f"left-{os.getpid()}"  # other programs of this machine may have dead mounts
    with started(tmp_path) as service:
        service.call("VolumeDriver.Create", Name="vol", Opts={"fsname": name})
        service.call("VolumeDriver.Mount", Name="vol", ID="i")
        with using(service, "vol") as pid:
            service.end(signal.SIGKILL)
            service.start()
            wait_until(lambda: processes.left(os.getpid(), name) != [])
            done = passfs(service, "rm", "vol", "--force")
            assert (done.returncode, names(service)) == (1, ["vol"])
            assert done.stderr.startswith(
                f"passfs rm: volume 'vol' may be in use: sh {pid}. An earlier plugin has left"
            )
            assert processes.left(os.getpid(), "other") == []
        assert json.loads(printed(service, "rm", "vol", "--force", "--json"))["name"] == "vol"


def test_a_mount_that_a_worker_serves_is_not_left(tmp_path: Path) -> None:
    """Also if the worker does not answer."""
    name = f"served-{os.getpid()}"
    with started(tmp_path) as service:
        service.call("VolumeDriver.Create", Name="vol", Opts={"fsname": name, "standby": "off"})
        service.call("VolumeDriver.Mount", Name="vol", ID="i")
        with using(service, "vol"):
            worker = processes_of(service, "vol")[0]["pid"]
            unmount(service.directory / "mounts" / "vol")
            assert processes.left(os.getpid(), name) == []
            os.kill(worker, signal.SIGSTOP)
            assert processes.left(os.getpid(), name) == []
            os.kill(worker, signal.SIGCONT)
        service.call("VolumeDriver.Unmount", Name="vol", ID="i")


def test_rm_refuses_a_volume_with_an_open_file(service: Service) -> None:
    service.call("VolumeDriver.Create", Name="vol")
    service.call("VolumeDriver.Mount", Name="vol", ID="i")
    fd = os.open(service.directory / "mounts" / "vol", os.O_RDONLY)
    done = passfs(service, "rm", "vol", "--force")
    os.close(fd)
    assert done.returncode == 1
    assert "cannot be removed: its files are in use" in done.stderr
    assert names(service) == ["vol"]
    service.call("VolumeDriver.Remove", Name="vol")
