"""driver.py: a request that hangs delays no other volume, and concurrent requests agree."""

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
from plugin.admin.source import HostView
from plugin.mounting.detaching import UNMOUNT_DEADLINE_S, UNMOUNT_MIN_S
from plugin.mounting.mount_spec import MOUNT_DEADLINE_S
from plugin.mounting.spawner import COMMAND
from plugin.mounting.worker import KILL_GRACE_S
from plugin.volumes.volume_locks import DEADLINES_S, SOURCE_DEADLINE_S
from tests.support.fakes.dockerd import Dockerd, mounted, plugin
from tests.support.fakes.worker import command

pytestmark = pytest.mark.full

SERVE = command("serve")
# Below the shortest timeout that an administrator may be expected to set (30 s).
ENGINE_PATIENCE_S = 25.0


class DeadServer:
    """A server that is gone: to open *directory*, on a network file system, hangs."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self.is_dead = False
        self.released = threading.Event()
        self.opening = threading.Semaphore(0)

    def open(
        self,
        host: HostView,
        source: str,
        options: Effective,
        on_note: Callable[[str], object] | None,
    ) -> int:
        if self.is_dead and source == self.directory:
            self.opening.release()
            self.released.wait()
            raise OSError(errno.ESTALE, "it has been away for too long")
        return really_open(host, source, options, on_note)


really_open = HostView.open


@pytest.fixture
def server(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeadServer]:
    server = DeadServer(source)

    def open_source(
        host: HostView,
        text: str,
        options: Effective,
        on_note: Callable[[str], object] | None = None,
    ) -> int:
        return server.open(host, text, options, on_note)

    monkeypatch.setattr(HostView, "open", open_source)
    yield server
    server.released.set()


@pytest.mark.logs("volume dead: cannot be mounted: .*opening source .* has not finished")
async def test_a_hanging_source_delays_no_other_volume(
    tmp_path: Path, source: Path, server: DeadServer, mock_clock: MockClock
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="dead", Opts={"source": str(source)})
        await dockerd.do("Create", Name="well")
        server.is_dead = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(dockerd.call, "Mount", Name="dead", ID="a"))
            await trio.to_thread.run_sync(server.opening.acquire)
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


@pytest.mark.logs("volume dead: cannot be mounted: .*(opening|another) .* has not finished")
async def test_requests_behind_a_hanging_source_are_answered_in_time(
    tmp_path: Path, source: Path, server: DeadServer, mock_clock: MockClock
) -> None:
    """The deadline counts from the arrival of a request, also behind several others."""
    answers: dict[str, str] = {}

    async def refused(verb: str, mount_id: str) -> None:
        answers[verb + mount_id] = (await dockerd.call(verb, Name="dead", ID=mount_id)).error

    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="dead", Opts={"source": str(source)})
        server.is_dead = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, "Mount", "a")
            await trio.to_thread.run_sync(server.opening.acquire)
            for verb, mount_id in (("Mount", "b"), ("Mount", "c"), ("Create", "")):
                nursery.start_soon(refused, verb, mount_id)
            await wait_all_tasks_blocked(0.1)
            mock_clock.jump(MOUNT_DEADLINE_S)
        assert await dockerd.references("dead") == 0
    begun = answers.pop("Mounta")
    assert "opening source" in begun
    behind = "for another request on the volume (Mount), which has not finished; try again"
    assert answers == {
        "Mountb": f"volume 'dead': Mount has waited 18 s {behind}",
        "Mountc": f"volume 'dead': Mount has waited 18 s {behind}",
        "Create": f"volume 'dead': Create has waited 10 s {behind}",
    }


async def test_an_unmount_waits_for_mounts_of_its_own_id_only(tmp_path: Path) -> None:
    """Otherwise a Mount of the same id would count after the Unmount, and for ever."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with plugin(tmp_path, command("wait for FIFO", fifo)) as dockerd:
        await dockerd.do("Create", Name="vol")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(dockerd.do, "Mount", Name="vol", ID="a"))
            writer = await trio.to_thread.run_sync(os.open, fifo, os.O_WRONLY)  # the worker starts
            nursery.start_soon(partial(dockerd.do, "Unmount", Name="vol", ID="a"))
            await wait_all_tasks_blocked(0.1)
            with trio.fail_after(10):
                await dockerd.do("Unmount", Name="vol", ID="b")
            os.close(writer)
        assert await dockerd.references("vol") == 0
        assert mounted(tmp_path) == []


def test_deadlines_end_before_an_engine_gives_up() -> None:
    """A failed Mount needs time to unmount after its deadline; requests behind it wait longer."""
    for deadline in DEADLINES_S.values():
        assert deadline < ENGINE_PATIENCE_S
    assert DEADLINES_S["Unmount"] + UNMOUNT_MIN_S < 25
    assert DEADLINES_S["Unmount"] > MOUNT_DEADLINE_S + UNMOUNT_DEADLINE_S + KILL_GRACE_S


async def test_create_with_a_hanging_source_is_refused(
    tmp_path: Path, source: Path, server: DeadServer, mock_clock: MockClock
) -> None:
    server.is_dead = True
    async with plugin(tmp_path, SERVE) as dockerd:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused_for_silence, dockerd, source)
            await trio.to_thread.run_sync(server.opening.acquire)
            mock_clock.jump(SOURCE_DEADLINE_S)
        assert await dockerd.names() == set()


async def refused_for_silence(dockerd: Dockerd, source: Path) -> None:
    refused = await dockerd.call("Create", Name="vol", Opts={"source": str(source)})
    assert f"'{source}' has not answered within 10 s" in refused.error


async def test_concurrent_creates_of_one_volume_make_one(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(partial(dockerd.do, "Create", Name="vol"))
    assert [path.name for path in (tmp_path / "data" / "volumes").iterdir()] == ["vol"]
    async with plugin(tmp_path, SERVE) as dockerd:
        assert [volume["Name"] for volume in (await dockerd.do("List"))["Volumes"]] == ["vol"]


@pytest.mark.parametrize("worker", [SERVE, COMMAND], ids=["fake", "real"])
async def test_references_and_mounts_agree_after_concurrent_users(
    tmp_path: Path, source: Path, worker: Sequence[str]
) -> None:
    """100 users of 20 volumes mount and unmount in any order; some keep their mounts."""
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
