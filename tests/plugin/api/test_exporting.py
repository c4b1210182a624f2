"""The address of the metrics: its permissions, its limits for clients, and its failures."""

import http.client
import os
import socket
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest
import trio

from plugin import app
from plugin.api import server
from plugin.metrics.pages import Exposition
from plugin.metrics.snapshot import Snapshot
from tests.support.fakes.dockerd import Dockerd, plugin
from tests.support.fakes.worker import command
from tests.support.tools.scraping import Page, free_port, page

SERVE = command("serve")
LIMIT_S = 20.0
GROUP = 4321


async def ask(address: Path, path: str, accept: str = "", method: str = "GET") -> Page:
    return await trio.to_thread.run_sync(lambda: page(address, path, accept, method=method))


async def test_a_socket_is_for_root_and_the_group_of_its_directory(tmp_path: Path) -> None:
    directory = tmp_path / "metrics"
    directory.mkdir()
    os.chown(directory, 0, GROUP)
    directory.chmod(0o2750)
    address = directory / "m.sock"
    async with plugin(tmp_path, SERVE, PASSFS_METRICS=str(address)):
        found = address.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o660, 0, GROUP)
    assert not address.exists()


async def test_without_the_setting_nothing_listens(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE):
        names = {*os.listdir(tmp_path), *os.listdir(tmp_path / "data")}
    assert {name for name in names if name.endswith(".sock")} == {"p.sock", "control.sock"}


@pytest.mark.logs(r"no metrics at 127\.0\.0\.1:\d+: .*Address already in use")
async def test_with_a_port_in_use_volumes_are_served(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        async with plugin(tmp_path, SERVE, PASSFS_METRICS=address) as dockerd:
            await dockerd.do("Create", Name="vol")


@pytest.mark.logs(r"no metrics at /.*/file: cannot use .*: it is no socket; move it away")
async def test_with_a_file_at_the_path_volumes_are_served(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    async with plugin(tmp_path, SERVE, PASSFS_METRICS=str(file)) as dockerd:
        await dockerd.do("Create", Name="vol")
    assert file.read_text() == "mine"


@pytest.mark.logs(r"no metrics at /.*: cannot use .*: another plugin listens on it")
@pytest.mark.parametrize("name", ["p.sock", "data/control.sock"])
async def test_an_own_socket_is_not_replaced(tmp_path: Path, name: str) -> None:
    async with plugin(tmp_path, SERVE, PASSFS_METRICS=str(tmp_path / name)) as dockerd:
        await dockerd.do("Create", Name="vol")
        async with Dockerd(tmp_path / "data" / "control.sock").connection() as connection:
            assert (await connection.request("/health", b"", "GET")).json["Volumes"] == 1


@pytest.mark.logs(r"no metrics at 192\.0\.2\.1:\d+: .*Cannot assign requested address")
async def test_with_an_address_of_another_machine_volumes_are_served(tmp_path: Path) -> None:
    address = f"192.0.2.1:{free_port()}"
    async with plugin(tmp_path, SERVE, PASSFS_METRICS=address) as dockerd:
        await dockerd.do("Create", Name="vol")


async def test_the_accept_header_chooses_the_format(tmp_path: Path) -> None:
    address = tmp_path / "m.sock"
    async with plugin(tmp_path, SERVE, PASSFS_METRICS=str(address)):
        plain = await ask(address, "/metrics")
        assert plain.content_type == "text/plain; version=0.0.4; charset=utf-8"
        opened = await ask(address, "/metrics?x=1", "application/openmetrics-text;version=1.0.0")
        assert opened.content_type.startswith("application/openmetrics-text; version=1.0.0")
        assert opened.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/volumes", 404), ("POST", "/metrics", 405)],
)
async def test_the_address_has_two_pages(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    address = tmp_path / "m.sock"
    async with plugin(tmp_path, SERVE, PASSFS_METRICS=str(address)):
        assert (await ask(address, path, method=method)).status == status


async def test_a_connection_has_one_request(tmp_path: Path) -> None:
    address = tmp_path / "m.sock"
    async with (
        plugin(tmp_path, SERVE, PASSFS_METRICS=str(address)),
        Dockerd(address).connection() as connection,
    ):
        answer = await connection.request("/health", b"", "GET")
        assert answer.headers["connection"] == "close"
        with trio.fail_after(LIMIT_S):
            assert await connection.stream.receive_some() == b""


async def test_further_clients_are_not_served(tmp_path: Path) -> None:
    """No client can take the plugin's descriptors."""
    address = tmp_path / "m.sock"
    async with plugin(tmp_path, SERVE, PASSFS_METRICS=str(address)) as dockerd:
        await ask(address, "/health")  # the server runs
        silent = [await trio.open_unix_socket(str(address)) for _ in range(server.METRICS_CLIENTS)]
        further = await trio.open_unix_socket(str(address))
        with trio.fail_after(LIMIT_S):
            assert await further.receive_some() == b""
        await dockerd.do("Create", Name="vol")
        for client in (*silent, further):
            await client.aclose()
        with trio.fail_after(LIMIT_S):
            while not await is_answered(address):
                await trio.lowlevel.checkpoint()


async def is_answered(address: Path) -> bool:
    try:
        return (await ask(address, "/health")).status == 200
    except (ConnectionError, http.client.RemoteDisconnected):
        return False


async def test_a_client_that_does_not_go_on_is_disconnected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "METRICS_S", 2.0)
    address = tmp_path / "m.sock"
    async with plugin(tmp_path, SERVE, PASSFS_METRICS=str(address)):
        await ask(address, "/health")
        async with await trio.open_unix_socket(str(address)) as client:
            await client.send_all(b"GET /metrics HTTP/1.1\r\n")
            with trio.fail_after(LIMIT_S):
                assert await client.receive_some() == b""


async def test_a_scrape_delays_no_request_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the text takes for ever; other scrapes wait for the first one."""
    begun, ended = threading.Event(), threading.Event()
    texts = []

    def render(taken: Snapshot, _: str) -> Exposition:
        texts.append(taken)
        begun.set()
        ended.wait(LIMIT_S)
        return Exposition(text=b"", form="text/plain")

    monkeypatch.setattr(app, "_renderer", lambda: render)
    address = tmp_path / "m.sock"
    try:
        async with plugin(tmp_path, SERVE, PASSFS_METRICS=str(address)) as dockerd:
            with (
                closing(socket.socket(socket.AF_UNIX)) as first,
                closing(socket.socket(socket.AF_UNIX)) as second,
            ):
                for client in (first, second):
                    client.connect(str(address))
                    client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                await trio.to_thread.run_sync(begun.wait, LIMIT_S)
                await dockerd.do("Create", Name="vol")
                assert (await ask(address, "/health")).status == 200
                assert len(texts) == 1
    finally:
        ended.set()
