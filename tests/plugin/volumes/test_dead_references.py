"""Dead references, to a mount that has lost its worker, beside references to a new mount."""

import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, strategies as st

from plugin.volume import Event, Volume
from tests.support.fakes.dockerd import Dockerd, mounted, plugin
from tests.support.fakes.service_manager import ServiceManager
from tests.support.fakes.worker import command
from tests.support.tools.processes import kill_all
from tests.support.tools.records import record
from tests.support.tools.service import started

pytestmark = pytest.mark.full

SERVE = command("serve")
KILLED = "volume vol: mount lost: worker [0-9]+ was killed by SIGKILL"
NOT_WHOLE = "volume vol: its mount is not whole, making a new one"


async def dead(dockerd: Dockerd) -> int:
    """Return the count of dead references in Status."""
    status = (await dockerd.volume("vol"))["Status"]
    count, _, advice = status.get("dead_references", "0").partition(": ")
    assert advice or count == "0"
    return int(count)


async def do(dockerd: Dockerd, verb: str, mount_ids: Iterable[str]) -> None:
    for mount_id in mount_ids:
        await dockerd.do(verb, Name="vol", ID=mount_id)


async def kill(dockerd: Dockerd) -> None:
    """Kill the worker and its guards, and wait until the plugin has noticed."""
    kill_all((await dockerd.volume("vol"))["Status"]["worker_pid"])
    with trio.fail_after(10):
        while (await dockerd.volume("vol"))["Status"]["mounted"]:
            await trio.lowlevel.checkpoint()


@pytest.mark.logs(KILLED)
@pytest.mark.logs(NOT_WHOLE)
async def test_status_counts_dead_references_until_their_unmounts(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await do(dockerd, "Mount", "aab")
        assert await dead(dockerd) == 0
        await kill(dockerd)
        assert await dead(dockerd) == 3
        await do(dockerd, "Mount", "c")
        status = (await dockerd.volume("vol"))["Status"]
        assert (status["mounted"], status["references"]) == (True, 4)
        assert status["dead_references"] == (
            "3: the worker of their mount has ended; a container that has this mount gets ENOTCONN"
            " until it is restarted"
        )
        for mount_id, left in (("a", 2), ("c", 2), ("a", 1), ("x", 1), ("b", 0)):
            await do(dockerd, "Unmount", mount_id)
            assert await dead(dockerd) == left
        assert mounted(tmp_path) == []


@pytest.mark.logs(KILLED)
@pytest.mark.logs(NOT_WHOLE)
async def test_docker_cp_into_a_container_with_a_dead_mount_leaves_its_reference_dead(
    tmp_path: Path,
) -> None:
    """It mounts with the id of the running container; a restart of the container ends the state."""
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await do(dockerd, "Mount", "a")
        await kill(dockerd)
        await do(dockerd, "Mount", "a")
        assert await dead(dockerd) == 1
        await do(dockerd, "Unmount", "a")
        assert await dead(dockerd) == 1
        await do(dockerd, "Unmount", "a")
        await do(dockerd, "Mount", "a")
        assert await dead(dockerd) == 0
        await do(dockerd, "Unmount", "a")


@pytest.mark.logs(KILLED)
@pytest.mark.logs(NOT_WHOLE)
async def test_the_death_of_a_second_worker_adds_its_references(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await do(dockerd, "Mount", "a")
        await kill(dockerd)
        await do(dockerd, "Mount", "b")
        await kill(dockerd)
        assert await dead(dockerd) == 2
        await do(dockerd, "Mount", "c")
        assert await dead(dockerd) == 2
        await do(dockerd, "Unmount", "abc")
        assert await dead(dockerd) == 0


async def test_references_of_an_ended_plugin_are_dead_beside_new_references(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await do(dockerd, "Mount", "abc")
    async with plugin(tmp_path, SERVE) as dockerd:
        assert await dead(dockerd) == 3
        await do(dockerd, "Mount", "n")
        assert (await dockerd.references("vol"), await dead(dockerd)) == (1, 3)
        await do(dockerd, "Unmount", "a")
        assert (await dockerd.references("vol"), await dead(dockerd)) == (1, 2)
        # An engine that was killed starts its containers again, with the same mount ids.
        await do(dockerd, "Mount", "b")
        assert (await dockerd.references("vol"), await dead(dockerd)) == (2, 1)
        await do(dockerd, "Unmount", "nb")
        assert mounted(tmp_path) == []
        assert await dead(dockerd) == 1
    async with plugin(tmp_path, SERVE) as dockerd:
        assert (await dockerd.references("vol"), await dead(dockerd)) == (0, 1)
        await dockerd.do("Remove", Name="vol")
        await dockerd.do("Create", Name="vol")
        assert await dead(dockerd) == 0


def test_dead_references_survive_a_restart_of_the_plugin(tmp_path: Path) -> None:
    """The worker of the new mount serves on while the service restarts."""
    with ServiceManager(tmp_path) as manager, started(tmp_path, manager) as service:

        def status() -> Any:
            return service.call("VolumeDriver.Get", Name="vol")["Volume"]["Status"]

        service.call("VolumeDriver.Create", Name="vol")
        service.call("VolumeDriver.Mount", Name="vol", ID="old")
        kill_all(status()["worker_pid"])
        while status()["mounted"]:
            pass
        service.call("VolumeDriver.Mount", Name="vol", ID="new")
        assert service.end(signal.SIGTERM)[0] == 0
        service.start()
        assert (status()["mounted"], status()["references"]) == (True, 2)
        assert status()["dead_references"].startswith("1: ")
        service.call("VolumeDriver.Unmount", Name="vol", ID="old")
        assert "dead_references" not in status()
        service.call("VolumeDriver.Unmount", Name="vol", ID="new")


IDS = "ab"
STEPS = st.one_of(
    st.tuples(st.just("mount"), st.sampled_from(IDS)),
    st.tuples(st.just("unmount"), st.sampled_from(IDS)),
    st.just(("die", "")),
)


@given(steps=st.lists(STEPS))
def test_a_reference_is_dead_exactly_if_its_mount_has_ended(steps: list[tuple[str, str]]) -> None:
    volume = Volume(record("vol"))
    held: dict[str, list[bool]] = {mount_id: [] for mount_id in IDS}  # True: dead
    for step, mount_id in steps:
        if step == "mount":
            volume.counts = volume.counts_with(mount_id)
            volume.apply(Event.MOUNT)
            held[mount_id].append(False)
        elif step == "unmount":
            volume.counts = volume.counts_without(mount_id)
            del held[mount_id][-1:]
        else:
            volume.mark_dead()
            held = {mount_id: [True] * len(dead) for mount_id, dead in held.items()}
        assert {each: volume.dead[each] for each in IDS} == {each: sum(held[each]) for each in IDS}
        assert all(count > 0 for count in volume.dead.values())  # as the registry requires
