"""standby.py and worker.py: a mount with guards lives as long as one of its processes.

The guards and workers are fakes, tests/support/fakes/guards.py.
"""

import os
import re
import signal
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from passthrough.options.choices import CachePolicy, Standby
from passthrough.worker import control
from plugin.mounting import standby
from plugin.mounting.fd_store import FdStore, Inherited, parsed_name
from plugin.mounting.keeper import Keeper, keeping
from plugin.mounting.spawner import COMMAND
from plugin.mounting.standby import Deaths
from plugin.volume import MountRecord
from tests.support.fakes.dockerd import mounted
from tests.support.fakes.guards import CRASH, MOST_DEATHS
from tests.support.fakes.service_manager import ServiceManager
from tests.support.fakes.worker import command
from tests.support.tools.mount_specs import DIRECTORY, NAME, SERVE, in_thread, mount_spec
from tests.support.tools.options import effective
from tests.support.tools.processes import group, kill_all, lives, members

STAND_BY = command("stand by")
WITHIN_S = 10.0
LOST = pytest.mark.logs(
    "volume data: mount lost: worker [0-9]+ was killed by SIGKILL; the volume fails until"
)


class Volume:
    """The mounted volume, its control page and its losses."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.losses: list[str] = []

    @property
    def page(self) -> control.State:
        fd = self.keeper._mounts[NAME].worker.descriptors()["control"]
        return control.read(fd)

    @property
    def deaths(self) -> Deaths:
        deaths = self.keeper.deaths(NAME)
        assert deaths is not None
        return deaths

    async def kill_worker(self, number: int = signal.SIGKILL) -> None:
        """Kill the worker, and wait until Status shows the next one."""
        pid = self.keeper.worker_pid(NAME)
        assert pid == self.page.worker_pid
        os.kill(pid, number)
        await until(lambda: self.keeper.worker_pid(NAME) != pid)


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - of other processes
            await trio.sleep(0.01)


@asynccontextmanager
async def volume(
    mounts: Path, source: Path, command: Sequence[str] = STAND_BY
) -> AsyncIterator[Volume]:
    async with keeping(mounts, command) as keeper:
        volume = Volume(keeper)
        options = effective(cache=CachePolicy.NEVER, standby=Standby.ON)
        spec = mount_spec(source, options=options, on_loss=volume.losses.append)
        await keeper.mount(spec)
        await until(lambda: len(volume.page.guard_pids) == control.GUARDS)
        yield volume


def oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def test_the_death_of_a_worker_is_no_loss(mounts: Path, source: Path) -> None:
    async with volume(mounts, source) as vol:
        assert vol.deaths == Deaths("ready", 0, "")
        await vol.kill_worker()
        assert vol.deaths.standby == "ready"
        assert vol.deaths.number == 1
        last = r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8} UTC: was killed by SIGKILL"
        assert re.fullmatch(last, vol.deaths.last)
        assert vol.losses == []
        assert mounted(mounts) == ["data"]


async def test_the_request_of_a_crash_is_shown(mounts: Path, source: Path) -> None:
    async with volume(mounts, source) as vol:
        await vol.kill_worker(CRASH)
        assert vol.deaths.last.endswith("was killed by SIGSEGV while it served LOOKUP of inode 7")


@pytest.mark.parametrize("first", [True, False])
async def test_the_death_of_a_guard_is_no_loss(mounts: Path, source: Path, *, first: bool) -> None:
    """Neither is that of the first one, which the fork server reports."""
    async with volume(mounts, source) as vol:
        pid, guard = vol.keeper.worker_pid(NAME), vol.page.guard_pids[not first]
        os.kill(guard, signal.SIGKILL)
        await until(lambda: not lives(guard))
        assert vol.keeper.worker_pid(NAME) == pid
        assert vol.deaths == Deaths("ready", 0, "")
        await vol.kill_worker()
        assert vol.losses == []


async def test_without_guards_the_standby_is_missing(mounts: Path, source: Path) -> None:
    async with volume(mounts, source) as vol:
        guards = vol.page.guard_pids
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in guards:
                os.kill(pid, number)
        await until(lambda: vol.deaths.standby == "missing")
        assert vol.losses == []
        assert lives(vol.keeper.worker_pid(NAME))
    assert mounted(mounts) == []


@LOST
async def test_the_end_of_all_processes_is_a_loss(mounts: Path, source: Path) -> None:
    """The plugin kills all of them, as it does with a worker that does not answer."""
    async with volume(mounts, source) as vol:
        group = members(vol.keeper.worker_pid(NAME))
        assert len(group) == 1 + control.GUARDS
        os.killpg(os.getpgid(min(group)), signal.SIGKILL)
        await until(lambda: vol.losses)
        assert vol.losses == ["its worker was killed by SIGKILL"]
        assert vol.keeper.worker_pid(NAME) == 0
        assert vol.deaths.standby == "missing"


@LOST
async def test_a_kill_reaches_all_processes_also_without_the_first_guard(
    mounts: Path, source: Path
) -> None:
    async with volume(mounts, source) as vol:
        pid = vol.keeper.worker_pid(NAME)
        before = members(pid)
        first = os.getpgid(pid)
        os.kill(first, signal.SIGKILL)
        await until(lambda: not lives(first))
        assert members(pid) >= before - {first}  # perhaps with the next guard
        vol.keeper._mounts[NAME].worker.kill()
        await until(lambda: vol.losses)
        await until(lambda: not group(first))


@pytest.mark.logs("volume data: mount lost: worker [0-9]+ has died too often")
async def test_a_service_that_is_given_up_is_a_loss_with_the_reason(
    mounts: Path, source: Path
) -> None:
    async with volume(mounts, source) as vol:
        for _ in range(MOST_DEATHS - 1):
            await vol.kill_worker(CRASH)
        os.kill(vol.keeper.worker_pid(NAME), CRASH)
        await until(lambda: vol.losses)
        (loss,) = vol.losses
        assert loss.startswith("its worker has died too often and is not replaced any more;")
        assert f"deaths: {MOST_DEATHS}: " in loss
        assert loss.endswith("was killed by SIGSEGV while it served LOOKUP of inode 7")
        assert vol.deaths.number == MOST_DEATHS


async def test_an_unmount_ends_all_processes(mounts: Path, source: Path) -> None:
    async with volume(mounts, source) as vol:
        group = members(vol.keeper.worker_pid(NAME))
        await vol.keeper.unmount(NAME)
        await until(lambda: not any(map(lives, group)))
        assert vol.losses == []


async def test_the_end_of_the_plugin_ends_all_processes(mounts: Path, source: Path) -> None:
    async with volume(mounts, source) as vol:
        group = members(vol.keeper.worker_pid(NAME))
    assert not any(map(lives, group))
    assert mounted(mounts) == []


async def test_the_out_of_memory_killer_prefers_each_worker_to_the_guards(
    mounts: Path, source: Path
) -> None:
    own = oom_score_adj(os.getpid())
    async with volume(mounts, source) as vol:
        for again in (True, False):
            await until(
                lambda: oom_score_adj(vol.keeper.worker_pid(NAME)) == own + standby.OOM_APART
            )
            assert [oom_score_adj(pid) for pid in vol.page.guard_pids] == [own, own]
            if again:
                await vol.kill_worker()


async def test_a_worker_without_a_standby_has_no_deaths(mounts: Path, source: Path) -> None:
    async with keeping(mounts, SERVE) as keeper:
        await keeper.mount(mount_spec(source))
        assert keeper.deaths(NAME) is None


@contextmanager
def page_of(vol: Volume) -> Iterator[control.Page]:
    fd = vol.keeper._mounts[NAME].worker.descriptors()["control"]
    yield control.Page(fd)


async def test_a_foreign_process_id_in_the_page_is_not_taken(mounts: Path, source: Path) -> None:
    """Malicious code in a worker can write the page, for example the plugin's process id."""
    own = oom_score_adj(os.getpid())
    async with volume(mounts, source) as vol:
        pid = vol.keeper.worker_pid(NAME)
        with page_of(vol) as page:
            page.worker_pid = os.getpid()
            assert vol.keeper.worker_pid(NAME) == pid
            os.kill(pid, signal.SIGSTOP)
            await trio.sleep(5 * standby.FIRST_LOOK_S)
            assert oom_score_adj(os.getpid()) == own
            page.worker_pid = pid
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, b"\0" * 12), (12, struct.pack("<i", -1)), (44, b"\xff" * 4)],
    ids=["magic", "pid", "end"],
)
async def test_a_page_with_an_impossible_value_is_as_before(
    mounts: Path, source: Path, at: int, value: bytes
) -> None:
    """Get and List answer in any case, because dockerd forgets a volume if they fail."""
    async with volume(mounts, source) as vol:
        pid = vol.keeper.worker_pid(NAME)
        with page_of(vol) as page:
            before = page.memory[at : at + len(value)]
            page.memory[at : at + len(value)] = value
            assert vol.deaths == Deaths("ready", 0, "")
            assert vol.keeper.worker_pid(NAME) == pid
            page.memory[at : at + len(value)] = before


async def test_a_death_in_the_far_future_is_shown(mounts: Path, source: Path) -> None:
    async with volume(mounts, source) as vol:
        with page_of(vol) as page:
            page.add_death(control.Death(1e300, 1.0, 1, 0xFFFF, 12345, 1))
            assert vol.deaths.last.startswith("2106-")
            assert "opcode 12345" in vol.deaths.last


async def test_the_page_keeps_its_size(mounts: Path, source: Path) -> None:
    """A process that reads a mapped page behind the end of its file gets SIGBUS."""
    async with volume(mounts, source) as vol:
        fd = vol.keeper._mounts[NAME].worker.descriptors()["control"]
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)


@pytest.mark.logs("worker [0-9]+ was killed by SIGKILL$")
@pytest.mark.logs("worker [0-9]+ ended with an unknown status$")
@pytest.mark.logs("worker [0-9]+ took over after")
@pytest.mark.logs("guard [0-9]+ has ended; another one follows")
async def test_real_guards_do_as_these_do(mounts: Path, source: Path) -> None:
    async with volume(mounts, source, COMMAND) as vol:
        file = vol.keeper.target(DIRECTORY) / "file"
        await vol.kill_worker()
        await in_thread(file.write_text, "one")
        pid = vol.keeper.worker_pid(NAME)
        first = os.getpgid(pid)
        os.kill(first, signal.SIGKILL)
        await until(lambda: not lives(first) and len(members(pid)) == 1 + control.GUARDS)
        assert vol.deaths == Deaths("ready", 1, vol.deaths.last)
        await vol.kill_worker()
        assert await in_thread(file.read_text) == "one"
        group = members(vol.keeper.worker_pid(NAME))
        await until(lambda: oom_score_adj(vol.keeper.worker_pid(NAME)) > oom_score_adj(os.getpid()))
        await vol.keeper.unmount(NAME)
        await until(lambda: not any(map(lives, group)))
        assert vol.losses == []


# A restart of the plugin.


def inherited_from(manager: ServiceManager, directory: Path) -> Inherited:
    """Return the descriptors that *manager* has, as it passes them to the next plugin."""
    stored: dict[int, dict[str, int]] = {}
    for name, fd in manager.settled().items():
        if (parsed := parsed_name(name)) is not None:
            stored.setdefault(parsed[0], {})[parsed[1]] = os.dup(fd)
    return Inherited(FdStore(str(directory / "notify.sock")), stored=stored)


@asynccontextmanager
async def adopted(
    mounts: Path, manager: ServiceManager, record: MountRecord
) -> AsyncIterator[Volume]:
    inherited = inherited_from(manager, mounts.parent)
    async with keeping(mounts, STAND_BY, inherited, [record], {NAME: DIRECTORY}) as keeper:
        volume = Volume(keeper)
        assert keeper.watch(NAME, volume.losses.append)
        yield volume


@pytest.mark.parametrize("first", [True, False], ids=["first guard dead", "whole"])
async def test_the_next_plugin_adopts_a_mount_with_its_standby(
    mounts: Path, source: Path, *, first: bool
) -> None:
    with ServiceManager(mounts.parent) as manager:
        async with keeping(mounts, STAND_BY, inherited_from(manager, mounts.parent)) as keeper:
            await keeper.mount(mount_spec(source))
            worker = keeper.worker_pid(NAME)
            (record,) = keeper.mount_records(NAME)
        assert lives(worker)
        if first:
            guard = os.getpgid(worker)
            os.kill(guard, signal.SIGKILL)
            await until(lambda: not lives(guard))
        async with adopted(mounts, manager, record) as vol:
            assert vol.keeper.worker_pid(NAME) == worker
            await vol.kill_worker()
            assert vol.deaths.number == 1
            assert vol.losses == []
            worker = vol.keeper.worker_pid(NAME)
            group = members(worker)
            await vol.keeper.unmount(NAME)
            await until(lambda: not any(map(lives, group)) and not manager.stored)


@pytest.mark.logs("was killed by SIGKILL|ended with an unknown status")
async def test_the_next_plugin_sees_the_end_of_all_processes(mounts: Path, source: Path) -> None:
    """It is not the end of the first guard, which the earlier plugin has seen."""
    with ServiceManager(mounts.parent) as manager:
        async with keeping(mounts, STAND_BY, inherited_from(manager, mounts.parent)) as keeper:
            await keeper.mount(mount_spec(source))
            (record,) = keeper.mount_records(NAME)
        async with adopted(mounts, manager, record) as vol:
            kill_all(vol.keeper.worker_pid(NAME))
            await until(lambda: vol.losses)
            assert vol.losses == ["its worker ended with an unknown status"]
            await vol.keeper.unmount(NAME)
            await until(lambda: not manager.stored)


async def test_processes_that_end_between_two_plugins_are_not_adopted(
    mounts: Path, source: Path
) -> None:
    with ServiceManager(mounts.parent) as manager:
        async with keeping(mounts, STAND_BY, inherited_from(manager, mounts.parent)) as keeper:
            await keeper.mount(mount_spec(source))
            (record,) = keeper.mount_records(NAME)
            group = members(keeper.worker_pid(NAME))
        kill_all(min(group))
        await until(lambda: not any(map(lives, group)))
        inherited = inherited_from(manager, mounts.parent)
        async with keeping(mounts, STAND_BY, inherited, [record], {NAME: DIRECTORY}) as keeper:
            assert not keeper.is_served(NAME)
            assert mounted(mounts) == []
        assert manager.wait_for_count(0)


async def test_the_next_plugin_reads_the_counters_of_a_mount(mounts: Path, source: Path) -> None:
    """The worker is a real one."""
    (source / "file").touch()
    with ServiceManager(mounts.parent) as manager:
        async with keeping(mounts, COMMAND, inherited_from(manager, mounts.parent)) as keeper:
            await keeper.mount(mount_spec(source, options=effective(standby=Standby.ON)))
            file = keeper.target(DIRECTORY) / "file"
            assert await errors_after_a_request(keeper, file) == {"ENODATA": 1}
            (record,) = keeper.mount_records(NAME)
        async with adopted(mounts, manager, record) as vol:
            assert await errors_after_a_request(vol.keeper, file) == {"ENODATA": 2}
            await vol.keeper.unmount(NAME)
            assert vol.keeper.mounted(NAME) is None


async def errors_after_a_request(keeper: Keeper, file: Path) -> dict[str, int]:
    """Have a request fail; return the errors of the mount."""
    with pytest.raises(OSError, match="No data"):
        await in_thread(partial(os.getxattr, file, "user.absent"))
    mount = keeper.mounted(NAME)
    assert mount is not None
    counters = mount.worker.standby.counters()
    assert counters is not None
    return dict(counters.errors)
