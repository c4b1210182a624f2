"""server.py: every request, also a malformed one, is answered, and the process goes on."""

import logging
import math
import os
import re
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from plugin.api import connection as http, server
from plugin.api.server import KEEP_ALIVE_S, serve
from plugin.api.verbs import VERBS
from plugin.app import composed
from plugin.errors import MountFailed
from plugin.mounting.keeper import Keeper
from plugin.protocol import CONTENT_TYPE
from plugin.volumes.driver import Driver
from tests.support.fakes.dockerd import HEADERS, Answer, Dockerd, plugin, settings
from tests.support.fakes.worker import command

SERVE = command("serve")
NEEDS_A_BODY = [path for path, verb in VERBS.items() if verb.request.__struct_fields__]
NEEDS_NONE = [path for path in VERBS if path not in NEEDS_A_BODY]


async def ask(directory: Path, path: str, body: bytes = b"{}", **more: Any) -> Answer:
    """Send one request to a new plugin without volumes."""
    async with plugin(directory, SERVE) as dockerd, dockerd.connection() as connection:
        answer = await connection.request(path, body, **more)
        assert answer.headers["content-type"] == CONTENT_TYPE
        assert await dockerd.names() == set()
        return answer


async def works(dockerd: Dockerd) -> object:
    return (await dockerd.do("List")) == {"Volumes": []}


# The protocol.


@pytest.mark.parametrize("body", [b"", b"{}", b"{}\n", b'{"Later": 1}'])
@pytest.mark.parametrize("path", NEEDS_NONE)
async def test_calls_without_fields_take_no_body(tmp_path: Path, path: str, body: bytes) -> None:
    assert (await ask(tmp_path, path, body)).status == 200


async def test_activate_returns_the_kind_of_plugin(tmp_path: Path) -> None:
    assert (await ask(tmp_path, "/Plugin.Activate", b"")).json == {"Implements": ["VolumeDriver"]}


async def test_volumes_are_local(tmp_path: Path) -> None:
    answer = await ask(tmp_path, "/VolumeDriver.Capabilities")
    assert answer.json == {"Capabilities": {"Scope": "local"}}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b'{"Name": 1}', b"\xff"])
@pytest.mark.parametrize("path", NEEDS_A_BODY)
async def test_a_malformed_body_is_refused(tmp_path: Path, path: str, body: bytes) -> None:
    answer = await ask(tmp_path, path, body)
    assert answer.status == 400
    assert answer.error.startswith("the request's body is ")


@pytest.mark.parametrize(
    "body",
    [b'{"A":' * 100_000, b'{"Later":' + b"[" * 50_000, b'{"Name": "v", "Opts": ' + b"{" * 10_000],
    ids=["objects", "lists", "options"],
)
@pytest.mark.parametrize("path", VERBS)
async def test_a_body_that_is_nested_too_deeply_is_refused(
    tmp_path: Path, path: str, body: bytes
) -> None:
    """Also in a field that the plugin does not know."""
    answer = await ask(tmp_path, path, body)
    assert answer.status == 400
    assert answer.error.startswith("the request's body is not accepted: ")


@pytest.mark.parametrize(
    "headers",
    [
        [("Host", "")],
        [("Host", "%2Frun%2Fdocker%2Fplugins%2Fp.sock"), ("Accept", "*/*")],
        [*HEADERS, ("Content-Type", "application/json")],
        [*HEADERS, ("Content-Type", "text/plain; charset=klingon"), ("Accept", "image/png")],
    ],
)
async def test_headers_are_ignored(tmp_path: Path, headers: list[tuple[str, str]]) -> None:
    answer = await ask(tmp_path, "/VolumeDriver.Create", b'{"Name": ""}', headers=headers)
    assert answer.error.startswith("volume name '' is not accepted")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/VolumeDriver.List", 405),
        ("PUT", "/VolumeDriver.Create", 405),
        ("POST", "/VolumeDriver.Destroy", 404),
        ("POST", "/VolumeDriver.List/", 404),
        ("POST", "/", 404),
        ("GET", "/metrics", 404),
        ("POST", "/%00%ff%0a", 404),
    ],
)
async def test_an_unknown_path_or_method_is_refused(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    answer = await ask(tmp_path, path, method=method)
    assert answer.status == status
    assert answer.error.startswith(f"{method} '/")


async def test_times_have_a_zone(tmp_path: Path) -> None:
    """Without a zone, dockerd would forget the volume."""
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        created = (await dockerd.volume("vol"))["CreatedAt"]
        (listed,) = (await dockerd.do("List"))["Volumes"]
        assert listed["CreatedAt"] == created
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", created)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()) < 60


# The connection.


async def test_a_body_that_is_too_long_is_refused(tmp_path: Path) -> None:
    name = b"x" * http.BODY_LIMIT_BYTES
    answer = await ask(tmp_path, "/VolumeDriver.Create", b'{"Name": "%s"}' % name)
    assert (answer.status, answer.error) == (413, "the body is longer than 1048576 bytes")


@pytest.mark.parametrize("mib", [2, 15])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_client_may_send_a_long_body_before_it_reads(
    tmp_path: Path, mib: int, *, is_chunked: bool
) -> None:
    """It gets the refusal, and no EPIPE."""
    length = mib << 20
    head = b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\n"
    if is_chunked:
        sent = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % length + b"x" * length
    else:
        sent = head + b"Content-Length: %d\r\n\r\n" % length + b"x" * length
    async with plugin(tmp_path, SERVE) as dockerd, dockerd.connection() as connection:
        with trio.fail_after(20):
            await connection.stream.send_all(sent)
            received = b"".join([data async for data in connection.stream])
        assert received.startswith(b"HTTP/1.1 413 ")
        assert b"the body is longer than 1048576 bytes" in received


async def test_the_length_of_a_body_is_refused_before_the_body(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd, dockerd.connection() as connection:
        await connection.stream.send_all(
            b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n"
        )
        with trio.fail_after(20):
            assert (await connection.stream.receive_some()).startswith(b"HTTP/1.1 413 ")


async def test_a_client_that_does_not_read_is_left_at_the_deadline(
    autojump_clock: Callable[[], None],
) -> None:
    del autojump_clock
    ours, theirs = socket.socketpair()
    async with (
        trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream,
        trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as client,
    ):
        connection = http.Connection(stream)
        await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await connection.head()
        began = trio.current_time()
        with pytest.raises(http.HungUp):
            await connection.reply(200, [b"x" * 65536] * 100)
        assert trio.current_time() - began == pytest.approx(http.REPLY_DEADLINE_S)


@pytest.mark.parametrize("sent", [b"", b"POST /VolumeDriver.List HTTP/1.1\r\nHost: x\r\nX: "])
async def test_a_client_without_a_whole_head_is_left_at_the_deadline(
    tmp_path: Path, sent: bytes, autojump_clock: Callable[[], None]
) -> None:
    del autojump_clock
    async with plugin(tmp_path, SERVE) as dockerd, dockerd.connection() as connection:
        began = trio.current_time()
        await connection.stream.send_all(sent)
        with trio.move_on_after(KEEP_ALIVE_S / 2):
            await connection.stream.receive_some()
            pytest.fail("the connection has ended")
        assert await connection.stream.receive_some() == b""
        assert trio.current_time() - began == pytest.approx(KEEP_ALIVE_S)


@pytest.mark.parametrize(
    "before", [b"", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"]
)
@pytest.mark.parametrize(("length", "status"), [(16384, b"200"), (16385, b"431"), (65536, b"431")])
async def test_a_head_of_more_than_16_kib_is_refused(
    tmp_path: Path, before: bytes, length: int, status: bytes
) -> None:
    """Whether it comes alone, or behind another request."""
    start = b"POST /VolumeDriver.List HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: "
    sent = start + b"x" * (length - len(start) - 4) + b"\r\n\r\n"
    async with plugin(tmp_path, SERVE) as dockerd, dockerd.connection() as connection:
        await connection.stream.send_all(before + sent)
        answers = b"".join([data async for data in connection.stream])
    assert re.findall(rb"HTTP/1.1 (\d+)", answers)[-1] == status


async def test_the_connection_is_closed_under_an_endless_body(tmp_path: Path) -> None:
    """The client sends more than the limit, and reads nothing."""
    async with plugin(tmp_path, SERVE) as dockerd, dockerd.connection() as connection:
        await connection.stream.send_all(
            b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 - which one does not matter
            while True:
                await connection.stream.send_all(chunk)
        assert await works(dockerd)


async def test_an_unfinished_body_is_refused_at_the_deadline(
    tmp_path: Path, autojump_clock: Callable[[], None]
) -> None:
    del autojump_clock
    async with plugin(tmp_path, SERVE) as dockerd, dockerd.connection() as connection:
        await connection.stream.send_all(
            b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
        )
        received = b""
        async for data in connection.stream:
            received += data
        assert received.startswith(b"HTTP/1.1 408 ")
        assert b"has not ended within 30 s" in received


async def test_a_request_may_arrive_byte_by_byte(tmp_path: Path) -> None:
    request = (
        b'POST /VolumeDriver.Get HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{"Name": "vol"}'
    )
    async with plugin(tmp_path, SERVE) as dockerd, dockerd.connection() as connection:
        for byte in request:
            await connection.stream.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert b"404" in await connection.stream.receive_some()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /Vol",
        b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\n",
        b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n",
        b'POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"Name": "v"',
    ],
)
async def test_a_client_may_hang_up_at_any_time(
    tmp_path: Path, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine opens a connection and closes it without a byte, to probe for the plugin."""
    caplog.set_level(logging.INFO)
    async with plugin(tmp_path, SERVE) as dockerd:
        caplog.clear()
        async with dockerd.connection() as connection:
            if sent:
                await connection.stream.send_all(sent)
        assert await works(dockerd)
        assert caplog.messages == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),
        (b"hello\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000, b"431"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", b"400"),
    ],
)
async def test_malformed_http_is_refused(tmp_path: Path, sent: bytes, status: bytes) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        async with dockerd.connection() as connection:
            await connection.stream.send_all(sent)
            assert (await connection.stream.receive_some()).startswith(b"HTTP/1.1 " + status)
        assert await works(dockerd)


async def test_requests_may_follow_each_other_without_a_wait(tmp_path: Path) -> None:
    """Also behind a Mount, while which the plugin watches the connection."""
    body = b'{"Name": "vol", "ID": "a"}'
    mount = b"POST /VolumeDriver.Mount HTTP/1.1\r\nHost: x\r\nContent-Length: 26\r\n\r\n%b" % body
    unmount = mount.replace(b"Mount", b"Unmount").replace(b"x\r\n", b"x\r\nConnection: close\r\n")
    async with plugin(tmp_path, SERVE) as dockerd, dockerd.connection() as connection:
        await dockerd.do("Create", Name="vol")
        await connection.stream.send_all(mount + unmount)
        answers = b"".join([data async for data in connection.stream])
        assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"200"]
        assert (await dockerd.volume("vol"))["Status"]["references"] == 0


async def test_a_client_may_wait_with_its_body(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd, dockerd.connection() as connection:
        await connection.stream.send_all(
            b"POST /VolumeDriver.List HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert (await connection.stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await connection.stream.send_all(b"{}")
        assert (await connection.stream.receive_some()).startswith(b"HTTP/1.1 200 ")


async def test_the_answer_to_head_has_no_body(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd, dockerd.connection() as connection:
        answer = await connection.request("/VolumeDriver.List", method="HEAD")
        assert (answer.status, answer.body) == (405, b"")
        assert (await connection.request("/VolumeDriver.List")).status == 200


@pytest.mark.logs("^plugin.api.server: a connection has failed$")
async def test_a_bug_in_one_connection_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: http.Connection) -> None:
        raise ZeroDivisionError

    async with plugin(tmp_path, SERVE) as dockerd, dockerd.connection() as other:
        await other.request("/VolumeDriver.List")
        await trio.testing.wait_all_tasks_blocked()  # until the plugin waits for the next one
        with monkeypatch.context() as patch:
            patch.setattr(http.Connection, "can_go_on", fail)
            async with dockerd.connection() as connection:
                await connection.request("/VolumeDriver.List")
                assert await connection.stream.receive_some() == b""
        assert (await other.request("/VolumeDriver.List")).status == 200


async def test_the_end_does_not_wait_for_idle_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for those that have sent nothing, nor for those between two requests."""
    monkeypatch.setattr(server, "DRAIN_S", math.inf)
    async with AsyncExitStack() as clients:
        async with plugin(tmp_path, SERVE) as dockerd:
            await clients.enter_async_context(dockerd.connection())
            idle = await clients.enter_async_context(dockerd.connection())
            assert (await idle.request("/VolumeDriver.List")).status == 200
        assert await idle.stream.receive_some() == b""


async def test_one_connection_serves_many_requests(
    tmp_path: Path, autojump_clock: Callable[[], None]
) -> None:
    """It stays open for longer than the 30 s for which dockerd keeps an idle connection."""
    del autojump_clock
    async with plugin(tmp_path, SERVE) as dockerd, dockerd.connection() as connection:
        for _ in range(5):
            assert (await connection.request("/VolumeDriver.List")).status == 200
            await trio.sleep(60)


async def test_a_connection_ends_with_its_client(tmp_path: Path) -> None:
    """The engine makes many, so none may last until the end of its keep-alive time."""
    async with plugin(tmp_path, SERVE) as dockerd:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(20):
            async with dockerd.connection() as connection:
                if number % 2:
                    await connection.request("/VolumeDriver.List")
        with trio.fail_after(10):
            while len(os.listdir("/proc/self/fd")) > before:
                await trio.lowlevel.checkpoint()


async def test_idle_connections_do_not_delay_requests(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd, AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(dockerd.connection()) for _ in range(200)]
        assert await works(dockerd)
        for connection in idle[::50]:
            assert (await connection.request("/VolumeDriver.List")).status == 200


@pytest.mark.logs("bug in /VolumeDriver.List -")
async def test_a_bug_is_answered_and_logged_with_its_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Driver, volume: object) -> None:
        raise ZeroDivisionError(volume)

    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        with monkeypatch.context() as patch:
            patch.setattr(Driver, "describe", fail)
            answer = await dockerd.call("List")
        assert (answer.status, answer.error) == (
            500,
            "internal error; the plugin's log says more",
        )
        assert await dockerd.names() == {"vol"}
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.logs("bug in /VolumeDriver.Mount vol id=a")
async def test_a_bug_in_mount_is_answered_with_500(tmp_path: Path) -> None:
    """The server runs Mount in a nursery, which wraps exceptions into a group."""
    async with (
        composed(settings(tmp_path), SERVE) as (_, _, listener),
        trio.open_nursery() as nursery,
    ):
        stop = trio.Event()
        unfinished = Driver.__new__(Driver)  # has none of its attributes
        nursery.start_soon(serve, unfinished, listener, stop.wait)
        answer = await Dockerd(tmp_path / "p.sock").call("Mount", Name="vol", ID="a")
        assert answer.status == 500
        stop.set()


async def test_a_mount_is_undone_if_its_client_hangs_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If a Mount takes too long, dockerd hangs up and sends no Unmount."""
    caplog.set_level(logging.INFO)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with plugin(tmp_path, command("wait for FIFO", fifo)) as dockerd:
        await dockerd.do("Create", Name="vol")
        async with dockerd.connection() as connection:
            await connection.send("/VolumeDriver.Mount", b'{"Name": "vol", "ID": "a"}')
            writer = await trio.to_thread.run_sync(os.open, fifo, os.O_WRONLY)  # the worker starts
        fifo.unlink()
        assert await has_one_volume(dockerd)
        os.close(writer)
        with trio.fail_after(10):
            while "volume vol: unmounted, mount a" not in caplog.messages:
                await trio.lowlevel.checkpoint()
        assert (await dockerd.volume("vol"))["Status"]["references"] == 0
        await dockerd.do("Remove", Name="vol")


@pytest.mark.logs("^plugin.api.server: volume vol: a Mount cannot be undone: the mount is busy$")
async def test_a_refused_undo_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a refusal and no bug, and there is no client to answer."""

    async def fail(*_: object) -> None:
        raise MountFailed("the mount is busy")

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with plugin(tmp_path, command("wait for FIFO", fifo)) as dockerd:
        await dockerd.do("Create", Name="vol")
        with monkeypatch.context() as patch:
            patch.setattr(Keeper, "unmount", fail)
            async with dockerd.connection() as connection:
                await connection.send("/VolumeDriver.Mount", b'{"Name": "vol", "ID": "a"}')
                writer = await trio.to_thread.run_sync(os.open, fifo, os.O_WRONLY)
            os.close(writer)
            with trio.fail_after(10):
                while (
                    "volume vol: a Mount cannot be undone: the mount is busy" not in caplog.messages
                ):
                    await trio.lowlevel.checkpoint()
        assert await has_one_volume(dockerd)


async def has_one_volume(dockerd: Dockerd) -> bool:
    return await dockerd.names() == {"vol"}
