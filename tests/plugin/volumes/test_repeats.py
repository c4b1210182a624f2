"""An engine that asks twice for one thing, because it has lost patience or the connection.

dockerd repeats a request after an error of the connection, when it has read the body to its end:
the repeat has none.
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
    """A Mount for `a` that is under way; gives the engine, its connection, and what ends it."""
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    async with plugin(directory, command("wait", fifo)) as dockerd, dockerd.connection() as client:
        await dockerd.do("Create", Name="vol")
        await client.send(MOUNT, BODY)
        writer = await trio.to_thread.run_sync(os.open, fifo, os.O_WRONLY)  # its worker starts
        fifo.unlink()
        yield dockerd, client, lambda: os.close(writer)


async def told(caplog: pytest.LogCaptureFixture, message: str) -> None:
    """Wait until the plugin has logged *message*."""
    with trio.fail_after(20):
        while message not in caplog.messages:
            await trio.lowlevel.checkpoint()


async def test_a_repeat_without_a_body_changes_nothing(tmp_path: Path) -> None:
    async with mounting(tmp_path) as (dockerd, client, go_on), dockerd.connection() as other:
        refused = await other.request(MOUNT, b"")
        assert (refused.status, refused.error != "") == (400, True)
        go_on()
        assert (await client.answer()).status == 200
        assert await dockerd.references("vol") == 1
        assert mounted(tmp_path) == ["vol"]


async def test_a_repeat_without_a_body_does_not_stand_for_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whose connection has ended: nobody was told of its mount."""
    caplog.set_level("INFO")
    async with mounting(tmp_path) as (dockerd, client, go_on), dockerd.connection() as other:
        await client.stream.aclose()
        for _ in range(2):
            assert (await other.request(MOUNT, b"")).status == 400
        go_on()
        await told(caplog, "volume vol: unmounted")
        assert await dockerd.references("vol") == 0
        assert mounted(tmp_path) == []
        await dockerd.do("Remove", Name="vol")


@pytest.mark.parametrize("leaves", ["first", "second"])
async def test_of_two_mounts_with_one_id_the_one_whose_client_stays_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, leaves: str
) -> None:
    """The second waits for its turn while the first is under way, and one of them hangs up."""
    caplog.set_level("INFO")
    async with mounting(tmp_path) as (dockerd, first, go_on), dockerd.connection() as second:
        await second.send(MOUNT, BODY)
        await wait_all_tasks_blocked(0.1)
        gone, stays = (first, second) if leaves == "first" else (second, first)
        await gone.stream.aclose()
        await wait_all_tasks_blocked(0.1)
        go_on()
        assert (await stays.answer()).status == 200
        await told(caplog, f"the client of {MOUNT} vol id=a has hung up")
        with trio.fail_after(20):
            while "waiting" in (await dockerd.volume("vol"))["Status"]:
                await trio.lowlevel.checkpoint()
        assert await dockerd.references("vol") == 1
        assert mounted(tmp_path) == ["vol"]
        await dockerd.do("Unmount", Name="vol", ID="a")
        assert mounted(tmp_path) == []
