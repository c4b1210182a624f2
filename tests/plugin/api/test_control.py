"""The control socket: for root alone, and answered from memory."""

import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest
import trio

from passthrough.worker import counters
from plugin.protocol import CONTROL_SOCKET
from plugin.volume import VolumeName
from plugin.volumes.registry import Registry
from tests.support.fakes.dockerd import Answer, Dockerd, plugin
from tests.support.fakes.hung import HungSource, is_opening
from tests.support.fakes.worker import command
from tests.support.tools.processes import descriptors, wait_until
from tests.support.tools.records import record

SERVE = command("serve")
# Connects as another user, and prints what the plugin sends.
CONNECT = """
import os, socket, sys
os.setgroups([])
os.setgid(1000)
os.setuid(1000)
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    try:
        client.sendall(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        print(client.recv(4096))
    except (BrokenPipeError, ConnectionResetError):
        print(b"")
"""


def control(directory: Path) -> Dockerd:
    """Return a client of the control socket."""
    return Dockerd(directory / "data" / CONTROL_SOCKET)


async def ask(directory: Path, path: str, method: str = "GET") -> Answer:
    async with control(directory).connection() as connection:
        return await connection.request(path, b"", method)


@contextmanager
def limited_path(path: Path) -> Iterator[Path]:
    """Yield a path of a directory that fits into the address of a socket."""
    fd = os.open(path, os.O_PATH)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


async def test_the_socket_is_for_root_alone_and_ends_with_the_plugin(tmp_path: Path) -> None:
    path = tmp_path / "data" / CONTROL_SOCKET
    async with plugin(tmp_path, SERVE):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_another_user_gets_no_answer(base: Path) -> None:
    """Also if the modes of the files let that user connect."""
    async with plugin(base, SERVE):
        path = base / "data" / CONTROL_SOCKET
        path.parent.chmod(0o755)
        path.chmod(0o666)
        done = await trio.run_process(
            [sys.executable, "-I", "-c", CONNECT, str(path)], capture_stdout=True
        )
        assert done.stdout == b"b''\n"
        assert (await ask(base, "/health")).status == 200


async def test_health_counts_the_volumes(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="idle")
        await dockerd.do("Create", Name="vol")
        await dockerd.do("Mount", Name="vol", ID="a")
        health = (await ask(tmp_path, "/health")).json
        assert health.pop("Program")
        assert health == {"Pid": os.getpid(), "Volumes": 2, "Mounted": 1, "Lost": 0}
        await dockerd.do("Unmount", Name="vol", ID="a")


async def test_the_volumes_are_those_of_list(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol", Opts={"cache": "never"})
        assert (await ask(tmp_path, "/volumes")).json == await dockerd.do("List")


@pytest.mark.logs("the volume fails until it is mounted again")
async def test_a_volume_has_its_references_and_processes(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        idle = (await ask(tmp_path, "/volumes/vol")).json
        assert (idle["State"], idle["Users"], idle["Mount"]) == ("idle", {}, None)
        await dockerd.do("Mount", Name="vol", ID="a")
        await dockerd.do("Mount", Name="vol", ID="a")
        served = (await ask(tmp_path, "/volumes/vol")).json
        assert served["Volume"] == await dockerd.volume("vol")
        assert (served["State"], served["Users"], served["Dead"]) == ("mounted", {"a": 2}, {})
        assert served["Mount"]["Worker"] == served["Volume"]["Status"]["worker_pid"]
        os.kill(served["Mount"]["Worker"], 9)
        with trio.fail_after(10):
            while (lost := (await ask(tmp_path, "/volumes/vol")).json)["State"] == "mounted":
                await trio.lowlevel.checkpoint()
        assert lost["Dead"] == {"a": 2}
        assert lost["Mount"]["Worker"] == 0
        assert lost["Mount"]["Loss"] == "was killed by SIGKILL"
        for _ in range(2):
            await dockerd.do("Unmount", Name="vol", ID="a")


def fail(file: Path, times: int) -> None:
    """Have *times* requests fail with ENODATA: the kernel keeps no names of attributes."""
    for _ in range(times):
        with pytest.raises(OSError, match="No data"):
            os.getxattr(file, "user.absent")


async def test_counters_are_those_of_each_mount(tmp_path: Path) -> None:
    """The workers are real ones."""
    async with plugin(tmp_path) as dockerd:
        for name in ("idle", "one", "two"):
            await dockerd.do("Create", Name=name)
        files = []
        for name in ("one", "two"):
            mountpoint = (await dockerd.do("Mount", Name=name, ID="i"))["Mountpoint"]
            files.append(Path(mountpoint, "file"))
            await trio.to_thread.run_sync(files[-1].touch)
        before = (await ask(tmp_path, "/counters")).json
        await trio.to_thread.run_sync(fail, files[0], 3)
        await trio.to_thread.run_sync(fail, files[1], 5)
        after = (await ask(tmp_path, "/counters")).json
        assert after["AtNs"] > before["AtNs"]
        assert [each["Name"] for each in after["Volumes"]] == ["one", "two"]
        for then, now, times in zip(before["Volumes"], after["Volumes"], (3, 5), strict=True):
            details = (await ask(tmp_path, f"/volumes/{now['Name']}")).json
            assert details["AtNs"] > after["AtNs"]
            assert details["Mount"]["Worker"] == now["Worker"]
            assert now["Mount"] == then["Mount"]
            assert "GETXATTR" not in then["Counters"]["Operations"]
            asked = now["Counters"]["Operations"]["GETXATTR"]
            assert details["Counters"]["Operations"]["GETXATTR"] == asked
            assert sum(asked["Buckets"]) == now["Counters"]["Errors"]["ENODATA"] == times
            assert asked["Ns"] > 256 * times
        assert (await ask(tmp_path, "/volumes/idle")).json["Counters"] is None
        for name in ("one", "two"):
            await dockerd.do("Unmount", Name=name, ID="i")


async def test_another_mount_of_a_volume_has_another_number(tmp_path: Path) -> None:
    numbers = set()
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        for _ in range(2):
            await dockerd.do("Mount", Name="vol", ID="i")
            (counted,) = (await ask(tmp_path, "/counters")).json["Volumes"]
            assert (counted["Counters"]["Operations"], counted["Counters"]["Opens"]) == ({}, 0)
            numbers.add(counted["Mount"])
            await dockerd.do("Unmount", Name="vol", ID="i")
        assert (await ask(tmp_path, "/counters")).json["Volumes"] == []
    assert len(numbers) == 2


def control_page() -> int:
    """Return the descriptor of the only control page in this process."""
    found = descriptors().items()
    (page,) = (fd for fd, target in found if target.startswith("/memfd:passfs-control"))
    return page


async def test_any_number_that_a_worker_has_written_is_answered(tmp_path: Path) -> None:
    """A worker that is compromised can write the memory of the counters."""
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await dockerd.do("Mount", Name="vol", ID="i")
        page = control_page()
        os.pwrite(page, b"\xff" * (counters.END - counters.AT), counters.AT)
        (counted,) = (await ask(tmp_path, "/counters")).json["Volumes"]
        assert counted["Counters"]["Operations"]["LOOKUP"]["Ns"] >= 2**64 - 1
        assert (await ask(tmp_path, "/volumes/vol")).json["Counters"] == counted["Counters"]
        await dockerd.do("Unmount", Name="vol", ID="i")


@pytest.mark.logs("the volume fails until it is mounted again")
async def test_a_mount_that_has_ended_has_no_counters(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await dockerd.do("Mount", Name="vol", ID="i")
        os.kill((await ask(tmp_path, "/volumes/vol")).json["Mount"]["Worker"], 9)
        with trio.fail_after(10):
            while (await ask(tmp_path, "/volumes/vol")).json["State"] == "mounted":
                await trio.lowlevel.checkpoint()
        (lost,) = (await ask(tmp_path, "/counters")).json["Volumes"]
        assert (lost["Worker"], lost["Counters"]) == (0, None)
        await dockerd.do("Unmount", Name="vol", ID="i")


@pytest.mark.parametrize("name", ["a/b", "100%", "..", "ü\n", "a?b#c", "check", "x/check"])
async def test_a_name_of_an_older_passfs_is_quoted_in_the_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    with Registry.open(tmp_path / "data") as registry:
        registry.add(msgspec.structs.replace(record("directory"), name=VolumeName(name)))
    async with plugin(tmp_path, SERVE):
        answer = await ask(tmp_path, f"/volumes/{quote(name, safe='')}")
        assert answer.json["Volume"]["Name"] == name


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/volumes/none", 404, "no such volume: 'none'"),
        ("GET", "/volumes/%FF", 404, "no such volume: '\ufffd'"),
        ("GET", "/volumes/", 404, "GET '/volumes/': not found"),
        ("POST", "/volumes", 405, "POST '/volumes': method not allowed"),
        ("POST", "/VolumeDriver.List", 404, "POST '/VolumeDriver.List': not found"),
    ],
)
async def test_other_requests_are_refused(
    tmp_path: Path, method: str, path: str, status: int, error: str
) -> None:
    async with plugin(tmp_path, SERVE):
        answer = await ask(tmp_path, path, method)
        assert (answer.status, answer.error) == (status, error)


async def test_the_engine_s_socket_has_no_answer_of_the_control_socket(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd, dockerd.connection() as connection:
        assert (await connection.request("/health", b"", "GET")).status == 404


@pytest.mark.logs("volume far: cannot be mounted")
async def test_a_source_that_hangs_delays_no_answer(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "far").mkdir(parents=True)
    async with plugin(tmp_path, SERVE) as dockerd, dockerd.connection() as connection:
        await dockerd.do("Create", Name="far", Opts={"source": str(source / "far")})
        with HungSource(source):
            await connection.send("/VolumeDriver.Mount", b'{"Name": "far", "ID": "a"}')
            await trio.to_thread.run_sync(wait_until, lambda: is_opening(os.getpid()))
            answer = (await ask(tmp_path, "/volumes/far")).json
            assert "opening source" in answer["Volume"]["Status"]["waiting"]
            assert (await ask(tmp_path, "/volumes")).status == 200
        assert (await connection.answer()).status == 400


async def test_the_path_of_the_data_directory_may_be_long(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    async with plugin(tmp_path, SERVE, PASSFS_DATA_DIR=str(long)):
        with limited_path(long) as short:
            async with Dockerd(short / CONTROL_SOCKET).connection() as connection:
                assert (await connection.request("/health", b"", "GET")).status == 200


@pytest.mark.logs("no `passfs` command will reach this plugin by .*: .*: it is no socket")
async def test_without_a_control_socket_volumes_are_served(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / CONTROL_SOCKET).write_text("a file of the user")
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
    assert (tmp_path / "data" / CONTROL_SOCKET).read_text() == "a file of the user"


async def test_the_socket_of_a_killed_plugin_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "data" / CONTROL_SOCKET))
    async with plugin(tmp_path, SERVE):
        assert (await ask(tmp_path, "/health")).status == 200
