"""host.py: facts about the host, which the plugin uses only if they are proved."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from passthrough.linux import syscalls
from plugin.admin.host import ROOT, host_proc, path_on_host
from tests.support.fakes.dockerd import plugin
from tests.support.fakes.worker import command
from tests.support.tools.mounts import MS_BIND, bound, mounted_on
from tests.support.tools.service import Service

SERVE = command("serve")
PROC = Path("/proc")
OWN_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


# The data directory.


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """Return the path at which the plugin sees the host's root, which has two disks."""
    root = tmp_path / "host"
    with ExitStack() as disks:
        for place in (root, root / "disk"):
            place.mkdir()
            disks.enter_context(mounted_on(place, "tmpfs"))
        yield root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return the plugin's path of the data directory; nothing is mounted there."""
    place = tmp_path / "data"
    place.mkdir()
    return place


@contextmanager
def mounted_from(source: Path, place: Path) -> Iterator[None]:
    """Make *source* and bind it to *place*, as an engine does with a mount of a plugin."""
    source.mkdir(parents=True, exist_ok=True)
    syscalls.mount(os.fsencode(source), os.fsencode(place), b"none", MS_BIND, b"")
    try:
        yield
    finally:
        syscalls.umount2(os.fsencode(place), syscalls.MNT_DETACH)


@pytest.mark.parametrize("place", ["var/lib/passfs", "disk/passfs", "disk"])
def test_the_path_on_the_host_is_found(host: Path, data: Path, place: str) -> None:
    with mounted_from(host / place, data):
        assert path_on_host(data, host, ROOT) == ROOT / place


def test_a_mount_that_was_changed_by_hand_has_its_real_path(host: Path, data: Path) -> None:
    """The path exists in two file systems: the plugin uses only one of them."""
    (host / "srv" / "passfs").mkdir(parents=True)
    with mounted_from(host / "disk" / "srv" / "passfs", data):
        assert path_on_host(data, host, ROOT) == ROOT / "disk" / "srv" / "passfs"


def test_a_plugin_that_sees_a_part_of_the_host_knows_paths_in_that_part(
    host: Path, data: Path
) -> None:
    with mounted_from(host / "srv" / "data", data):
        assert path_on_host(data, host / "srv", Path("/srv")) == Path("/srv/data")
        (host / "other").mkdir()
        assert path_on_host(data, host / "other", Path("/other")) is None


def test_a_path_that_leads_elsewhere_is_unknown(host: Path, data: Path) -> None:
    with mounted_from(host / "srv" / "data", data), mounted_on(host / "srv", "tmpfs"):
        assert path_on_host(data, host, ROOT) is None
        (host / "srv" / "data").mkdir()
        assert path_on_host(data, host, ROOT) is None


def test_the_path_of_a_removed_directory_is_unknown(host: Path, data: Path) -> None:
    assert path_on_host(data / "none", host, ROOT) is None
    with mounted_from(host / "srv" / "data", data):
        (host / "srv" / "data").rename(host / "moved")
        assert path_on_host(data, host, ROOT) == ROOT / "moved"
        (host / "moved").rmdir()
        assert path_on_host(data, host, ROOT) is None


def test_a_path_with_invalid_utf8_is_unknown(host: Path, data: Path) -> None:
    """JSON has no bytes, and dockerd forgets a volume if its Get fails."""
    with mounted_from(host / os.fsdecode(b"\xff"), data):
        assert path_on_host(data, host, ROOT) is None


def test_a_service_on_the_host_uses_its_own_paths(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(".")
    assert path_on_host(tmp_path / "link", ROOT, ROOT) == tmp_path


async def test_status_shows_the_directory_on_the_host(
    tmp_path: Path, host: Path, data: Path
) -> None:
    source = host / "srv" / "passfs"
    with mounted_from(source, data):
        async with plugin(tmp_path, SERVE, PASSFS_HOST_ROOT=str(host)) as dockerd:
            await dockerd.do("Create", Name="own")
            assert (await dockerd.volume("own"))["Status"]["data"] == "/srv/passfs/volumes/own"
        assert (source / "volumes" / "own").is_dir()
        (host / "other").mkdir()
        part = {"PASSFS_HOST_ROOT": str(host / "other"), "PASSFS_HOST_DIR": "/other"}
        async with plugin(tmp_path, SERVE, **part) as dockerd:
            assert (await dockerd.volume("own"))["Status"]["data"] == "own directory"


@pytest.mark.logs("volume own: cannot be mounted: cannot use .*volumes/own")
async def test_messages_name_the_directory_on_the_host(
    tmp_path: Path, host: Path, data: Path
) -> None:
    """No message has a path that exists only inside the plugin."""
    source = host / "srv" / "passfs"
    (host / "other").mkdir()
    part = {"PASSFS_HOST_ROOT": str(host / "other"), "PASSFS_HOST_DIR": "/other"}
    whole = {"PASSFS_HOST_ROOT": str(host)}
    with mounted_from(source, data):
        for settings, expected in (
            (whole, "/srv/passfs/volumes/{}"),
            (part, "volumes/{} in the data"),
        ):
            (source / "volumes" / "left" / "inner").mkdir(parents=True, exist_ok=True)
            async with plugin(tmp_path, SERVE, **settings) as dockerd:
                refused = await dockerd.call("Create", Name="left")
                assert refused.error.startswith(expected.format("left")), refused.error
                await dockerd.do("Create", Name="own")
                with bound(host, data / "volumes" / "own" / "inner"):
                    refused = await dockerd.call("Remove", Name="own")
                assert expected.format("own/inner") in refused.error
                (source / "volumes" / "own").rename(source / "away")
                refused = await dockerd.call("Mount", Name="own", ID="i")
                assert expected.format("own") in refused.error
                assert str(tmp_path / "data") not in refused.error
                await dockerd.do("Remove", Name="own")
                (source / "away" / "inner").rmdir()
                (source / "away").rmdir()


# Process ids.


def test_the_host_s_processes_are_found_by_its_procfs(host: Path) -> None:
    assert host_proc(ROOT) == PROC
    assert host_proc(host) is None
    (host / "proc" / "self" / "fdinfo").mkdir(parents=True)
    assert host_proc(host) is None, "a directory that a user has made"
    with bound(PROC, host / "proc"):
        assert host_proc(host) == host / "proc"


@contextmanager
def contained(directory: Path, **environment: str) -> Iterator[Service]:
    """A plugin in a pid namespace of its own, with a mounted volume, as in a container."""
    service = Service(directory, within=OWN_PID_NAMESPACE, environment=environment)
    service.start()
    try:
        service.call("VolumeDriver.Create", Name="vol")
        service.call("VolumeDriver.Mount", Name="vol", ID="i")
        yield service
    finally:
        service.call("VolumeDriver.Unmount", Name="vol", ID="i")
        service.end(signal.SIGKILL)


def status(service: Service) -> Any:
    return service.call("VolumeDriver.Get", Name="vol")["Volume"]["Status"]


def ids_of(pid: int) -> list[int]:
    """Return the ids of a process in its pid namespaces, the innermost last, proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (ids,) = (line.split()[1:] for line in lines if line.startswith("NSpid:"))
    return [int(number) for number in ids]


def test_a_contained_plugin_shows_the_host_s_process_ids(tmp_path: Path, host: Path) -> None:
    with (
        bound(PROC, host / "proc"),
        contained(tmp_path, PASSFS_HOST_ROOT=str(host)) as service,
    ):
        pid = status(service)["worker_pid"]
        assert Path(f"/proc/{pid}/comm").read_text() == "passfs:vol\n"
        assert ids_of(pid)[0] == pid != ids_of(pid)[-1]
        assert f"worker {pid}" in service.log.read_text()


def test_a_process_id_of_the_plugin_s_namespace_has_another_name(
    tmp_path: Path, host: Path
) -> None:
    with contained(tmp_path, PASSFS_HOST_ROOT=str(host)) as service:
        assert "worker_pid" not in status(service)
        inside = status(service)["worker_pid_in_plugin"]
        found = set()
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                if ids_of(pid)[1:] == [inside]:
                    found.add(Path(f"/proc/{pid}/comm").read_text())
        # Other programs may have namespaces of their own.
        assert {name for name in found if name.startswith("passfs")} == {"passfs:vol\n"}
