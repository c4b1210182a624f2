"""Requests that an engine repeats after a timeout or an error of the connection.

dockerd repeats a request after such an error, and has then read its body to the end: the repeat has
no body.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.support.fakes.dockerd import Connection, Dockerd, mounted, plugin
from tests.support.fakes.worker import command

MOUNT = "/VolumeDriver.Mount"
BODY = b'{"Name": "vol", "ID": "a"}'


@asynccontextmanager
async def mounting(
    directory: Path,
) -> AsyncIterator[tuple[Dockerd, Connection, Callable[[], None]]]:
    """Start a Mount; yield the engine, its connection, and a function that lets the Mount end."""
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    async with (
        plugin(directory, command("wait for FIFO", fifo)) as dockerd,
        dockerd.connection() as client,
    ):
        await dockerd.do("Create", Name="vol")
        await client.send(MOUNT, BODY)
        writer = await trio.to_thread.run_sync(os.open, fifo, os.O_WRONLY)  # the worker starts
        fifo.unlink()
        yield dockerd, client, lambda: os.close(writer)


async def logged(caplog: pytest.LogCaptureFixture, message: str) -> None:
    """Wait until the plugin has logged *message*."""
    with trio.fail_after(20):
        while message not in caplog.messages:
            await trio.lowlevel.checkpoint()


async def test_a_repeat_without_a_body_changes_nothing(tmp_path: Path) -> None:
    async with mounting(tmp_path) as (dockerd, client, finish), dockerd.connection() as other:
        refused = await other.request(MOUNT, b"")
        assert (refused.status, refused.error != "") == (400, True)
        finish()
        assert (await client.answer()).status == 200
        assert await dockerd.references("vol") == 1
        assert mounted(tmp_path) == ["vol"]


async def test_a_repeat_without_a_body_does_not_replace_the_lost_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection of the first has ended, so that its Mount is undone."""
    caplog.set_level("INFO")
    async with mounting(tmp_path) as (dockerd, client, finish), dockerd.connection() as other:
        await client.stream.aclose()
        for _ in range(2):
            assert (await other.request(MOUNT, b"")).status == 400
        finish()
        await logged(caplog, "volume vol: unmounted, mount a")
        assert await dockerd.references("vol") == 0
        assert mounted(tmp_path) == []
        await dockerd.do("Remove", Name="vol")


@pytest.mark.parametrize("leaves", ["first", "second"])
async def test_of_two_mounts_with_one_id_the_answered_one_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, leaves: str
) -> None:
    """The second waits for the lock of the volume, and the client of one of them hangs up."""
    caplog.set_level("INFO")
    async with mounting(tmp_path) as (dockerd, first, finish), dockerd.connection() as second:
        await second.send(MOUNT, BODY)
        await wait_all_tasks_blocked(0.1)
        lost, kept = (first, second) if leaves == "first" else (second, first)
        await lost.stream.aclose()
        await wait_all_tasks_blocked(0.1)
        finish()
        assert (await kept.answer()).status == 200
        await logged(caplog, f"volume vol: the client of {MOUNT} has hung up")
        with trio.fail_after(20):
            while "waiting" in (await dockerd.volume("vol"))["Status"]:
                await trio.lowlevel.checkpoint()
        assert await dockerd.references("vol") == 1
        assert mounted(tmp_path) == ["vol"]
        await dockerd.do("Unmount", Name="vol", ID="a")
        assert mounted(tmp_path) == []
