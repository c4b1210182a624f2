"""driver.py: what hangs holds up nobody else, and what comes at once ends consistent."""

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from passthrough.options.effective import Effective
from plugin.admin.source import Host
from plugin.mounting.detaching import UNMOUNT_DEADLINE_S, UNMOUNT_MIN_S
from plugin.mounting.keeper import MOUNT_DEADLINE_S
from plugin.mounting.spawner import COMMAND
from plugin.mounting.worker import KILL_GRACE_S
from plugin.volumes.volume_locks import DEADLINES_S, SOURCE_DEADLINE_S
from tests.support.fakes.dockerd import Dockerd, mounted, plugin
from tests.support.fakes.worker import command

SERVE = command("serve")
# The shortest that an administrator may be expected to set, with something to spare.
ENGINE_PATIENCE_S = 25.0


class DeadServer:
    """Opening *directory* hangs, as on a network file system whose server is gone."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self.is_dead = False
        self.gone_for_good = threading.Event()
        self.asked = threading.Semaphore(0)

    def open(
        self, host: Host, source: str, options: Effective, note: Callable[[str], object]
    ) -> int:
        if self.is_dead and source == self.directory:
            self.asked.release()
            self.gone_for_good.wait()
            raise OSError(errno.ESTALE, "it has been away for too long")
        return really_open(host, source, options, note)


really_open = Host.open


@pytest.fixture
def server(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeadServer]:
    server = DeadServer(source)

    def open_source(
        host: Host, text: str, options: Effective, note: Callable[[str], object] = str
    ) -> int:
        return server.open(host, text, options, note)

    monkeypatch.setattr(Host, "open", open_source)
    yield server
    server.gone_for_good.set()


@pytest.mark.logs("volume dead: cannot be mounted: .*opening source .* has not finished")
async def test_a_source_that_hangs_holds_up_no_other_volume(
    tmp_path: Path, source: Path, server: DeadServer, mock_clock: MockClock
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="dead", Opts={"source": str(source)})
        await dockerd.do("Create", Name="well")
        server.is_dead = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(dockerd.call, "Mount", Name="dead", ID="a"))
            await trio.to_thread.run_sync(server.asked.acquire)
            for _ in range(3):
                await dockerd.do("Mount", Name="well", ID="b")
                await dockerd.do("Unmount", Name="well", ID="b")
                assert await dockerd.names() == {"dead", "well"}
            mock_clock.jump(3)
            status = (await dockerd.volume("dead"))["Status"]
            assert status["mounted"] is False
            assert status["waiting"] == f"Mount, for 3 s: opening source '{source}'"
            mock_clock.jump(MOUNT_DEADLINE_S)
        status = (await dockerd.volume("dead"))["Status"]
        assert "opening source" in status["error"]
        assert "waiting" not in status
        await dockerd.do("Unmount", Name="dead", ID="a")
        await dockerd.do("Remove", Name="dead")


@pytest.mark.logs("volume dead: cannot be mounted: .*opening source .* has not finished")
async def test_who_waits_for_a_source_that_hangs_is_answered_in_time(
    tmp_path: Path, source: Path, server: DeadServer, mock_clock: MockClock
) -> None:
    """The time of a request begins with the request, however many came before it."""
    answers: dict[str, str] = {}

    async def refused(verb: str, mount_id: str) -> None:
        answers[verb + mount_id] = (await dockerd.call(verb, Name="dead", ID=mount_id)).error

    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="dead", Opts={"source": str(source)})
        server.is_dead = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, "Mount", "a")
            await trio.to_thread.run_sync(server.asked.acquire)
            for verb, mount_id in (("Mount", "b"), ("Mount", "c"), ("Create", "")):
                nursery.start_soon(refused, verb, mount_id)
            await wait_all_tasks_blocked(0.1)
            mock_clock.jump(MOUNT_DEADLINE_S)
        assert await dockerd.references("dead") == 0
    begun = answers.pop("Mounta")
    assert "opening source" in begun
    behind = "for another request on the volume, Mount, which has not finished"
    assert answers == {
        "Mountb": f"volume 'dead': Mount has waited 18 s {behind}",
        "Mountc": f"volume 'dead': Mount has waited 18 s {behind}",
        "Create": f"volume 'dead': Create has waited 10 s {behind}",
    }


async def test_an_unmount_waits_for_nobody_else_s_mount(tmp_path: Path) -> None:
    """But it does for that of its own id, which would be counted for ever after it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with plugin(tmp_path, command("wait", fifo)) as dockerd:
        await dockerd.do("Create", Name="vol")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(dockerd.do, "Mount", Name="vol", ID="a"))
            writer = await trio.to_thread.run_sync(os.open, fifo, os.O_WRONLY)  # it is starting
            nursery.start_soon(partial(dockerd.do, "Unmount", Name="vol", ID="a"))
            await wait_all_tasks_blocked(0.1)
            with trio.fail_after(10):
                await dockerd.do("Unmount", Name="vol", ID="b")
            os.close(writer)
        assert await dockerd.references("vol") == 0
        assert mounted(tmp_path) == []


def test_every_call_is_answered_before_an_engine_gives_up() -> None:
    """A Mount that fails is taken down on top of its own time; who waits for it waits longer."""
    for deadline in DEADLINES_S.values():
        assert deadline < ENGINE_PATIENCE_S
    assert DEADLINES_S["Unmount"] + UNMOUNT_MIN_S < 25
    assert DEADLINES_S["Unmount"] > MOUNT_DEADLINE_S + UNMOUNT_DEADLINE_S + KILL_GRACE_S


async def test_a_create_on_a_source_that_hangs_is_refused(
    tmp_path: Path, source: Path, server: DeadServer, mock_clock: MockClock
) -> None:
    server.is_dead = True
    async with plugin(tmp_path, SERVE) as dockerd:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused_for_silence, dockerd, source)
            await trio.to_thread.run_sync(server.asked.acquire)
            mock_clock.jump(SOURCE_DEADLINE_S)
        assert await dockerd.names() == set()


async def refused_for_silence(dockerd: Dockerd, source: Path) -> None:
    refused = await dockerd.call("Create", Name="vol", Opts={"source": str(source)})
    assert f"'{source}' has not answered within 10 s" in refused.error


async def test_twice_the_same_create_at_once_makes_one_volume(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(partial(dockerd.do, "Create", Name="vol"))
    assert [path.name for path in (tmp_path / "data" / "volumes").iterdir()] == ["vol"]
    async with plugin(tmp_path, SERVE) as dockerd:
        assert [volume["Name"] for volume in (await dockerd.do("List"))["Volumes"]] == ["vol"]


@pytest.mark.parametrize("worker", [SERVE, COMMAND], ids=["fake", "real"])
async def test_a_storm_of_mounts_ends_consistent(
    tmp_path: Path, source: Path, worker: Sequence[str]
) -> None:
    """100 users of 20 volumes come and go in any order; some stay."""
    chance = random.Random(2)  # noqa: S311 - repeatable, not secret
    names = [f"v{number}" for number in range(20)]
    stay: dict[str, int] = dict.fromkeys(names, 0)

    async def user(name: str, mount_id: str, stays: bool) -> None:
        await dockerd.do("Mount", Name=name, ID=mount_id)
        if not stays:
            await dockerd.do("Unmount", Name=name, ID=mount_id)

    async with plugin(tmp_path, worker) as dockerd:
        for name in names:
            await dockerd.do("Create", Name=name, Opts={"source": str(source)})
        async with trio.open_nursery() as nursery:
            for number in range(100):
                name = chance.choice(names)
                stays = chance.random() < 0.2
                stay[name] += stays
                nursery.start_soon(user, name, f"id{number}", stays)
        assert {name: await dockerd.references(name) for name in names} == stay
        assert mounted(tmp_path) == sorted(name for name, count in stay.items() if count)
