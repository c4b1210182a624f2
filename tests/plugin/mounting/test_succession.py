"""succession.py: after a restart, processes of the plugin's program take over from an older one.

The processes are fakes, tests/support/fakes/guards.py.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from passthrough.worker import control
from passthrough.worker.handover import KEEP
from plugin.mounting import fd_store, succession
from plugin.mounting.fd_store import FdStore, Inherited, parsed_name
from plugin.mounting.keeper import Keeper, keeping
from plugin.mounting.mount import Mount
from plugin.mounting.worker import Worker
from plugin.volume import MountRecord
from tests.support.fakes.dockerd import mounted
from tests.support.fakes.service_manager import ServiceManager
from tests.support.fakes.worker import command
from tests.support.tools.mount_specs import DIRECTORY, NAME, SERVE, mount_spec
from tests.support.tools.processes import lives, members

STAND_BY = command("stand by")
WITHIN_S = 10.0
FIRST = {"fuse1", "life1", "log1", "process1", "control1"}
SECOND = {"fuse1", "li1.1", "lo1.1", "pr1.1", "co1.1"}


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - of other processes
            await trio.sleep(0.01)


class Plugins:
    """Plugins of several programs, one after the other, with one mount."""

    def __init__(self, mounts: Path, source: Path, manager: ServiceManager) -> None:
        self._mounts = mounts
        self._source = source
        self.manager = manager
        self._records: list[MountRecord] = []
        self.losses: list[str] = []

    def _inherited(self) -> Inherited:
        stored: dict[int, dict[str, int]] = {}
        for name, fd in self.manager.settled().items():
            parsed = parsed_name(name)
            assert parsed is not None
            stored.setdefault(parsed[0], {})[parsed[1]] = os.dup(fd)
        return Inherited(FdStore(str(self._mounts.parent / "notify.sock")), stored=stored)

    @asynccontextmanager
    async def plugin(
        self, program: str, command: Sequence[str] = STAND_BY
    ) -> AsyncIterator[Keeper]:
        """Run a plugin; the first one mounts the volume."""
        used = (self._inherited(), self._records, {NAME: DIRECTORY})
        async with keeping(self._mounts, command, *used, program=program) as keeper:
            if not self._records:
                await keeper.mount(mount_spec(self._source, on_loss=self.losses.append))
                self._records = keeper.mount_records(NAME)
            else:
                assert keeper.watch(NAME, self.losses.append)
            yield keeper
            self._records = keeper.mount_records(NAME)

    @property
    def names(self) -> set[str]:
        """The names of the descriptors in the store."""
        return {*self.manager.stored}


@pytest.fixture
async def plugins(mounts: Path, source: Path, manager: ServiceManager) -> AsyncIterator[Plugins]:
    """Yield plugins with a mount that the program `old` serves; then unmount it."""
    plugins = Plugins(mounts, source, manager)
    async with plugins.plugin("old") as keeper:
        assert keeper.program_note(NAME) == ""
        await until(lambda: len(members(keeper.worker_pid(NAME))) == 1 + control.GUARDS)
    yield plugins
    async with keeping(
        mounts, STAND_BY, plugins._inherited(), plugins._records, {NAME: DIRECTORY}
    ) as keeper:
        await until(lambda: keeper.is_served(NAME))
        group = members(keeper.worker_pid(NAME))
        await keeper.unmount(NAME)
        await until(lambda: not any(map(lives, group)) and not manager.stored)
    assert mounted(mounts) == []


async def test_a_mount_of_the_same_program_stays(plugins: Plugins) -> None:
    async with plugins.plugin("old") as keeper:
        worker = keeper.worker_pid(NAME)
        assert keeper.program_note(NAME) == ""
        await keeper.replace(NAME)
        assert keeper.worker_pid(NAME) == worker
    assert plugins.names == FIRST


async def test_another_program_takes_over(plugins: Plugins) -> None:
    async with plugins.plugin("new") as keeper:
        before = members(keeper.worker_pid(NAME))
        assert keeper.program_note(NAME) == succession.PENDING
        await keeper.replace(NAME)
        assert keeper.program_note(NAME) == ""
        (served,) = keeper.programs()
        assert served.replaced_s > 0
        await until(lambda: not any(map(lives, before)))
        assert lives(keeper.worker_pid(NAME))
        await until(lambda: plugins.names == SECOND)
        assert keeper.mount_records(NAME) == plugins._records
    assert plugins.losses == []


async def test_the_old_processes_may_end_before_the_keeper_looks(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "_LOOK_S", 0.1)
    async with plugins.plugin("new") as keeper:
        await keeper.replace(NAME)
        assert keeper.program_note(NAME) == ""
        assert lives(keeper.worker_pid(NAME))
    assert plugins.losses == []


async def test_the_new_processes_outlive_their_plugin_and_are_replaced_in_turn(
    plugins: Plugins,
) -> None:
    async with plugins.plugin("new") as keeper:
        await keeper.replace(NAME)
        worker = keeper.worker_pid(NAME)
    await until(lambda: plugins.names == SECOND)
    async with plugins.plugin("new") as keeper:
        assert keeper.worker_pid(NAME) == worker
        assert keeper.program_note(NAME) == ""
    async with plugins.plugin("newer") as keeper:
        assert keeper.worker_pid(NAME) == worker
        await keeper.replace(NAME)
        await until(lambda: not lives(worker))
        await until(lambda: "li1.2" in plugins.names and "li1.1" not in plugins.names)
        deaths = keeper.deaths(NAME)
        assert deaths is not None
        assert deaths.standby == "ready"
    assert plugins.losses == []


@pytest.mark.logs("an older program serves on")
@pytest.mark.parametrize(
    ("failure", "note"),
    [
        ("refuse", "its tables have version 3"),
        ("die", "volume 'data' cannot be served: its worker was killed by SIGKILL before it"),
        ("die waiting", "its successor has failed"),
        ("die at the note", "its successor has failed"),
        ("hang", "it was not ready within 0.5 s"),
        ("hang at the note", "its successor has failed"),
    ],
)
async def test_the_old_program_serves_on_if_the_new_one_fails(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch, failure: str, note: str
) -> None:
    if failure == "hang":
        monkeypatch.setattr(succession, "READY_S", 0.5)
    monkeypatch.setattr(succession, "COMMIT_S", 0.5)
    async with plugins.plugin("new", command("stand by", failure)) as keeper:
        guards = members(keeper.worker_pid(NAME)) - {keeper.worker_pid(NAME)}
        await keeper.replace(NAME)
        assert keeper.program_note(NAME).startswith(note)
        await until(lambda: lives(keeper.worker_pid(NAME)))
        assert members(keeper.worker_pid(NAME)) >= guards
        await until(lambda: plugins.names == FIRST)
    assert plugins.losses == []
    monkeypatch.undo()
    async with plugins.plugin("new") as keeper:
        await keeper.replace(NAME)
        assert keeper.program_note(NAME) == ""
    assert plugins.losses == []


@pytest.fixture
def on_trial(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[Mount], object]]]:
    """Yield a list of what happens to a mount when its successor has reported."""
    happens: list[Callable[[Mount], object]] = []
    conclude = succession.conclude

    async def concluded(mount: Mount, successor: Worker) -> str:
        for each in happens:
            each(mount)
        if happens:
            await mount.worker.ended.wait()
        return await conclude(mount, successor)

    monkeypatch.setattr(succession, "conclude", concluded)
    yield happens
    happens.clear()


def kill_the_old_guards(mount: Mount) -> None:
    mount.worker.kill()


def kill_all_processes(mount: Mount) -> None:
    mount.worker.kill()
    assert mount.successor is not None
    mount.successor.kill()


async def test_the_new_program_serves_if_the_old_guards_die_on_trial(
    plugins: Plugins, on_trial: list[Callable[[Mount], object]]
) -> None:
    on_trial.append(kill_the_old_guards)
    async with plugins.plugin("new") as keeper:
        await keeper.replace(NAME)
        assert keeper.program_note(NAME) == ""
        assert lives(keeper.worker_pid(NAME))
        await until(lambda: plugins.names == SECOND)
    assert plugins.losses == []


async def test_a_mount_is_live_between_the_old_processes_and_the_successor(
    plugins: Plugins,
    on_trial: list[Callable[[Mount], object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`passfs upgrade` asks for the live mounts all the time."""
    monkeypatch.setattr(succession, "_LOOK_S", 0.2)
    on_trial.append(kill_the_old_guards)

    async def ask(keeper: Keeper) -> None:
        while True:
            keeper.live_mounts(NAME)
            await trio.lowlevel.checkpoint()

    async with plugins.plugin("new") as keeper, trio.open_nursery() as nursery:
        nursery.start_soon(ask, keeper)
        await keeper.replace(NAME)
        nursery.cancel_scope.cancel()
        assert len(keeper.live_mounts(NAME)) == 1


@pytest.mark.logs("an older program serves on: its successor has failed")
@pytest.mark.logs("the volume fails until it is mounted again")
@pytest.mark.logs("its mount is not whole")
async def test_a_mount_is_lost_if_all_processes_die_on_trial(
    plugins: Plugins, source: Path, on_trial: list[Callable[[Mount], object]]
) -> None:
    on_trial.append(kill_all_processes)
    async with plugins.plugin("new") as keeper:
        await keeper.replace(NAME)
        await until(lambda: plugins.losses and not plugins.manager.stored)
        assert not keeper.is_served(NAME)
        await keeper.mount(mount_spec(source))


async def test_a_successor_that_serves_at_the_last_moment_is_not_killed(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes the note in the old page while the keeper is about to kill it."""
    kill = Worker.kill_leader

    def note_and_kill(successor: Worker) -> None:
        page_fd = keeper._mounts[NAME].worker.standby.descriptors()["control"]
        control.Page(page_fd).end(control.End.REPLACED, 0)
        kill(successor)

    monkeypatch.setattr(Worker, "kill_leader", note_and_kill)
    monkeypatch.setattr(succession, "COMMIT_S", 0.1)
    monkeypatch.setattr(succession, "LEAVE_S", 1.0)
    async with plugins.plugin("new", command("stand by", "hang at the note")) as keeper:
        await keeper.replace(NAME)
        assert keeper.program_note(NAME) == ""
        assert lives(keeper.worker_pid(NAME))
        await until(lambda: plugins.names == SECOND)
    assert plugins.losses == []


@pytest.mark.logs("an older program serves on: its successor is stuck in the kernel")
@pytest.mark.logs("worker [0-9]+ is stuck in the kernel and does not end")
async def test_a_successor_that_a_kill_does_not_end_is_left_to_itself(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upgrade of other volumes goes on. Once the kill ends it, the old program does, too."""
    stuck: list[Worker] = []
    kill = Worker.kill_leader
    monkeypatch.setattr(Worker, "kill_leader", lambda successor: stuck.append(successor))  # noqa: PLW0108 - bound
    monkeypatch.setattr(succession, "COMMIT_S", 0.1)
    monkeypatch.setattr(succession, "LEAVE_S", 0.1)
    async with plugins.plugin("new", command("stand by", "hang at the note")) as keeper:
        with trio.fail_after(WITHIN_S):
            await keeper.replace(NAME)
        assert keeper.program_note(NAME).startswith("its successor is stuck")
        kill(stuck[0])
        await until(lambda: plugins.names == FIRST and lives(keeper.worker_pid(NAME)))
    assert plugins.losses == []


@pytest.mark.logs("an older program serves on: the service manager does not store its successor")
async def test_the_old_program_serves_on_if_the_service_manager_does_not_answer(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new processes would not outlive the plugin."""
    monkeypatch.setattr(fd_store, "ANSWER_TIMEOUT_S", 0.2)
    async with plugins.plugin("new") as keeper:
        worker = keeper.worker_pid(NAME)
        plugins.manager.unresponsive = True
        await keeper.replace(NAME)
        plugins.manager.unresponsive = False
        assert keeper.worker_pid(NAME) == worker
        assert keeper.program_note(NAME).startswith("the service manager does not store")
        await until(lambda: plugins.names == FIRST)
    assert plugins.losses == []


@pytest.mark.logs("an older program serves on: it has died")
@pytest.mark.parametrize("said", ["waits", "notes"])
async def test_the_next_plugin_concludes_what_a_dead_one_has_begun(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """The plugin dies after the report, before or after it has written KEEP."""

    async def die(_: Mount, successor: Worker) -> str:
        successor.stored = True
        return "it has died"

    with monkeypatch.context() as patch:
        patch.setattr(succession, "conclude", die)
        async with plugins.plugin("new") as keeper:
            before = members(keeper.worker_pid(NAME))
            await keeper.replace(NAME)
    assert plugins.names == FIRST | SECOND
    if said == "notes":
        os.write(plugins.manager.stored["li1.1"], KEEP)
        await until(lambda: not any(map(lives, before)))
    async with plugins.plugin("new") as keeper:
        await until(lambda: plugins.names == SECOND and not any(map(lives, before)))
        assert keeper.program_note(NAME) == ""
        assert lives(keeper.worker_pid(NAME))
    assert plugins.losses == []


async def test_the_next_plugin_undoes_what_is_not_ready(
    plugins: Plugins,
) -> None:
    """The plugin dies before the report; its successor has stopped the guards, and is killed."""
    async with plugins.plugin("new", command("stand by", "hang")) as keeper:
        group = members(keeper.worker_pid(NAME))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.replace, NAME)
            mount = keeper._mounts[NAME]
            await until(lambda: mount.successor and plugins.names == FIRST | SECOND)
            successor = mount.successor
            assert successor is not None
            await until(lambda: successor.standby.state and successor.standby.state.generation)
            successor.stored = True
            nursery.cancel_scope.cancel()
    assert plugins.names == FIRST | SECOND
    async with plugins.plugin("new") as keeper:
        await until(lambda: plugins.names == FIRST)
        await until(lambda: lives(keeper.worker_pid(NAME)))
        assert os.getpgid(keeper.worker_pid(NAME)) in group
    assert plugins.losses == []


@pytest.mark.logs("an older program serves on: it has no standby")
async def test_a_mount_without_a_standby_stays_with_its_program(
    mounts: Path, source: Path, manager: ServiceManager
) -> None:
    plugins = Plugins(mounts, source, manager)
    async with plugins.plugin("old", SERVE):
        pass
    async with plugins.plugin("new", SERVE) as keeper:
        worker = keeper.worker_pid(NAME)
        assert keeper.program_note(NAME) == "it has no standby"
        await keeper.replace(NAME)
        assert keeper.worker_pid(NAME) == worker
        await keeper.unmount(NAME)
        await until(lambda: not manager.stored)
        await keeper.mount(mount_spec(source))
        assert keeper.program_note(NAME) == ""
    async with plugins.plugin("newer", SERVE) as keeper:
        await keeper.unmount(NAME)
