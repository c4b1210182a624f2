"""The plugin is killed by SIGKILL at every step of its verbs, of its start and of its end.

The verbs are Create, Mount, Unmount and Remove, and `passfs set`; the others change nothing.

Between two crash points (tests/support/tools/steps.py) nothing changes outside the plugin's memory.
So a crash at each of them stands for a crash at any time. A commit is SQLite's code, and
tests/plugin/volumes/test_registry.py has crashes within it.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set as AbstractSet
from contextlib import ExitStack, closing, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from passthrough.worker import control
from plugin.commands.asking import CommandError, Plugin, path_of
from plugin.mounting.fd_store import KINDS
from plugin.protocol import SetReply
from tests.plugin.mounting.test_adoption import User
from tests.support.fakes.service_manager import ServiceManager
from tests.support.tools.processes import kill_all
from tests.support.tools.service import START_S
from tests.support.tools.steps import STEPS, CrashingPlugin, Parent

pytestmark = pytest.mark.full

DATA = "written by a user"

# The steps of two concurrent tasks come in either order, so that one round may miss a crash point.
# Rounds are repeated until all have been hit, up to this number.
ROUNDS = 5

RECORD = {"commit", "answer"}
MAKE_DIRECTORY = {
    *("make a directory", "give a directory its owner", "give a directory its mode"),
    "sync a directory",
}
MOUNT = {"make a directory", "mount", "start a worker", "hand over"}
UNMOUNT = {"unmount", "close the FUSE descriptor", "remove a directory"}
ASIDE = {"move a directory", "sync a directory"}
DELETE = {"move a file", "remove a file", "remove a directory"}
STORE, NOTIFY = {"store descriptors"}, {"notify the service manager"}
START = NOTIFY | {
    *("make a directory", "remove a file", "listen", "commit", "start the fork server"),
    "answer",
}
UPGRADE = (START - {"answer"}) | STORE
UPGRADE |= {"start a worker", "hand over", "let a successor serve", "change timeouts"}
FIRST_START = START | {"move a file", "sync a directory"}


class Case(NamedTuple):
    """An action that is interrupted by crashes, and its expected steps."""

    before: Sequence[str]
    """Earlier actions: verbs, some with a mount id, or keys of `EVENTS`."""
    act: str
    """The action during which the plugin is killed."""
    steps: AbstractSet[str]
    """The steps of the action."""
    without_manager: AbstractSet[str] = frozenset()
    """Further steps without a service manager."""
    with_manager: AbstractSet[str] = frozenset()
    """Further steps with a service manager."""
    options: Mapping[str, str] = {}
    """The options of the Create."""
    own: bool = True
    """True if the volume has a directory of its own, False if it has a source."""


CASES = {
    "create": Case((), "Create", RECORD | MAKE_DIRECTORY),
    "create-source": Case((), "Create", RECORD, own=False),
    "mount": Case(("Create",), "Mount j", RECORD | MOUNT, with_manager=STORE),
    "mount-more": Case(("Create", "Mount i"), "Mount j", RECORD, own=False),
    "mount-same": Case(("Create", "Mount j"), "Mount j", RECORD),
    "heal": Case(
        ("Create", "Mount i", "worker dies"),
        "Mount j",
        RECORD | MOUNT | UNMOUNT,
        with_manager=STORE,
    ),
    "unmount": Case(("Create", "Mount i", "Mount j"), "Unmount j", RECORD),
    "unmount-last": Case(("Create", "Mount j"), "Unmount j", RECORD | UNMOUNT, with_manager=NOTIFY),
    "remove": Case(("Create",), "Remove", RECORD | ASIDE | DELETE),
    "remove-source": Case(("Create",), "Remove", RECORD, own=False),
    "remove-leak": Case(
        ("Create", "Mount i"), "Remove", RECORD | UNMOUNT | ASIDE | DELETE, with_manager=NOTIFY
    ),
    "set": Case(("Create",), "set", RECORD),
    "set-mounted": Case(
        ("Create", "Mount i"),
        "set",
        RECORD | {"change timeouts"},
        options={"cache": "never"},
    ),
    "end": Case(
        ("Create", "Mount i"),
        "end",
        NOTIFY | {"close the FUSE descriptor", "remove a file"},
        without_manager=UNMOUNT,
    ),
    "start": Case(
        ("Create", "Mount i", "kill"),
        "start",
        START,
        without_manager={"unmount", "remove a directory"},
        with_manager={"change timeouts"},
    ),
    "give-back": Case(("Create", "kill", "half of a removal"), "start", START | ASIDE),
}


class Volume(NamedTuple):
    """The state of the volume: after a crash, it is that before the action or that after it."""

    exists: bool = False
    own: bool = False
    references: int = 0
    timeout: str = ""
    data: str = ""


class CrashTest:
    """One case, and the plugin that repeats it with a crash at each crash point in turn."""

    def __init__(self, plugin: CrashingPlugin, case: Case) -> None:
        self.plugin = plugin
        self.case = case
        self.data_dir = plugin.directory / "data"
        self.target = plugin.directory / "mounts" / "vol"
        self.source = plugin.directory / "source"
        self.source.mkdir()

    def attempt(self, action: str) -> Any:
        """Do *action*, which the plugin must not refuse; return its reply, or None without one."""
        if (event := EVENTS.get(action)) is not None:
            return event(self)
        verb, _, mount_id = action.partition(" ")
        source = {} if self.case.own else {"source": str(self.source)}
        options = {**self.case.options, **source}
        reply = self.plugin.try_call(f"VolumeDriver.{verb}", Name="vol", ID=mount_id, Opts=options)
        assert reply is None or not reply.get("Err"), (action, reply)
        return reply

    def do(self, action: str) -> Any:
        """Do *action*, which must succeed, and return the reply."""
        reply = self.attempt(action)
        assert reply is not None or action in EVENTS, (action, self.plugin.log.read_text())
        return reply

    def prepare(self) -> None:
        """Do the earlier actions of the case, and write data into the volume."""
        for action in self.case.before:
            self.do(action)
            if action == "Create":
                (self.files / "file").write_text(DATA)
                (self.files / "more").mkdir(exist_ok=True)

    @property
    def files(self) -> Path:
        """Return the directory with the files of the volume."""
        return self.data_dir / "volumes" / "vol" if self.case.own else self.source

    def volume(self) -> Volume:
        """Return the state of the volume."""
        volumes = self.plugin.call("VolumeDriver.List")["Volumes"]
        if not volumes:
            return Volume()
        (status,) = (volume["Status"] for volume in volumes)
        file = self.files / "file"
        return Volume(
            exists=True,
            own="data" in status,
            references=status["references"],
            timeout=status["options"]["attr_timeout"],
            data=file.read_text() if file.exists() else "",
        )

    def is_mounted(self) -> bool:
        """Return whether the volume is mounted; the plugin and the mount table must agree."""
        volumes = self.plugin.call("VolumeDriver.List")["Volumes"]
        claimed = ["vol" for volume in volumes if volume["Status"]["mounted"]]
        assert self.plugin.mounted() == claimed
        return bool(claimed)

    def is_quiet(self) -> bool:
        """Return whether the plugin has no background work left after its last reply."""
        manager = self.plugin.manager
        stored = 0 if manager is None else len(manager.stored)
        expected = 0 if manager is None else len(KINDS) * len(self.plugin.mounted())
        return stored == expected and not list((self.data_dir / "trash").iterdir())

    def settle(self) -> None:
        """Wait until the plugin has no background work left, or is dead."""
        limit = time.monotonic() + START_S
        while not self.plugin.is_dead() and not self.is_quiet():
            assert time.monotonic() < limit, self.plugin.log.read_text()
            time.sleep(0.002)

    def clear(self) -> None:
        """Unmount the volume for all its users, remove it, and check that nothing is left."""
        for action in (*self.case.before, self.case.act):
            verb, _, mount_id = action.partition(" ")
            if verb == "Mount" and self.volume().exists:
                self.do(f"Unmount {mount_id}")
        if self.volume().exists:
            self.do("Remove")
        self.settle()
        assert not self.plugin.is_dead()
        assert self.volume() == Volume()
        assert not self.is_mounted()
        for empty in ("data/volumes", "data/removed", "data/trash", "mounts"):
            assert os.listdir(self.plugin.directory / empty) == []
        if not self.case.own and self.case.before:
            assert (self.source / "file").read_text() == DATA

    def restart_if_dead(self) -> None:
        """Start the plugin again if it is dead."""
        if self.plugin.is_dead():
            self.plugin.start()
            assert not self.plugin.is_dead(), self.plugin.log.read_text()
            self.settle()

    def repeat(self) -> None:
        """Repeat the request; it must succeed, and its result must be usable."""
        verb = self.case.act.partition(" ")[0]
        if self.case.act in EVENTS or (verb == "Remove" and not self.volume().exists):
            return
        answer = self.do(self.case.act)
        if verb == "Mount":
            assert answer["Mountpoint"] == str(self.target)
            assert (self.target / "file").read_text() == DATA
            self.write()
        elif verb == "Create":
            self.do("Mount z")
            self.write()
            self.do("Unmount z")

    def remembers(self) -> bool:
        """Return whether the kernel goes on with attributes that the host has changed meanwhile."""
        with (self.target / "file").open() as file:
            os.utime(file.fileno())
            before = os.fstat(file.fileno()).st_mtime_ns
            os.utime(self.files / "file", (1, 1))
            return os.fstat(file.fileno()).st_mtime_ns == before

    def write(self) -> None:
        """Write through the mount, and check the file behind it."""
        (self.target / "written").write_text(DATA)
        assert (self.files / "written").read_text() == DATA

    def crash_at_each_point(self) -> None:
        """Repeat the action, and kill the plugin at each crash point in turn."""
        self.prepare()
        old = [] if self.plugin.is_dead() else [self.volume()]
        if self.case.act == "Remove":  # which first drops references that are not in use
            old += [volume._replace(references=0) for volume in old]
        was_mounted = self.plugin.mounted() == ["vol"] and "worker dies" not in self.case.before
        self.do(self.case.act)
        self.settle()
        stays = self.plugin.manager is not None and was_mounted and self.plugin.mounted() == ["vol"]
        self.restart_if_dead()
        new = self.volume()
        self.clear()
        for number in count():
            self.prepare()
            with self.in_use() if stays else nullcontext():
                self.plugin.crash_at(number)
                reply = self.attempt(self.case.act)
                self.settle()
                is_finished = self.plugin.cancel_crash()
                if is_finished and not self.plugin.is_dead():
                    kill(self)
                assert len(self.plugin.mounted()) <= 1
                if stays:
                    self.write()
                self.restart_if_dead()
                if stays and self.case.act == "set":
                    assert self.remembers() == (self.volume().timeout == new.timeout)
            assert self.volume() in ([new] if reply is not None else [*old, new])
            assert self.is_mounted() or not stays
            self.repeat()
            self.clear()
            if is_finished:
                return

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold a file of the volume open; after the block it must still work, on the same mount."""
        with (self.target / "file").open() as file:
            yield
            # While the file is open, no other file system can have the same st_dev.
            assert os.fstat(file.fileno()).st_dev == self.target.stat().st_dev
            assert file.read() == DATA
            self.write()


def kill(test: CrashTest) -> None:
    test.plugin.send(signal.SIGKILL)
    test.plugin.reap()


def end(test: CrashTest) -> None:
    test.plugin.send(signal.SIGTERM)
    assert test.plugin.is_dead(START_S)


def start(test: CrashTest) -> object:
    test.plugin.start()
    return None if test.plugin.is_dead() else "it answers"


def worker_dies(test: CrashTest) -> None:
    (volume,) = test.plugin.call("VolumeDriver.List")["Volumes"]
    kill_all(volume["Status"]["worker_pid"])
    limit = time.monotonic() + START_S
    while test.plugin.call("VolumeDriver.List")["Volumes"][0]["Status"]["mounted"]:
        assert time.monotonic() < limit
        time.sleep(0.002)
    assert test.plugin.manager is None or test.plugin.manager.wait_for_count(0)


def half_of_a_removal(test: CrashTest) -> None:
    (test.data_dir / "volumes" / "vol").rename(test.data_dir / "removed" / "vol")


def set_timeout(test: CrashTest) -> object:
    """Change a timeout by `passfs set`, and return the reply, or None without one."""
    try:
        return Plugin(str(test.data_dir)).ask(
            path_of("vol"), SetReply, "PATCH", body={"Options": {"attr_timeout": "1h"}}
        )
    except CommandError:
        return None


EVENTS: Mapping[str, Callable[[CrashTest], object]] = {
    "set": set_timeout,
    "kill": kill,
    "end": end,
    "start": start,
    "worker dies": worker_dies,
    "half of a removal": half_of_a_removal,
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    with Parent(tmp_path_factory.mktemp("parent")) as parent:
        yield parent


def crashed_steps(plugin: CrashingPlugin) -> set[str]:
    """Return the steps before or after which the plugin has died."""
    assert "Traceback" not in plugin.log.read_text()
    return {name.partition(": ")[2] for name in plugin.crashes}


def mounts(case: Case) -> bool:
    """Return whether the case mounts a volume; without mounts a service manager changes nothing."""
    return any(action.startswith("Mount") for action in (*case.before, case.act))


@pytest.mark.parametrize(
    ("case", "has_manager"),
    [
        pytest.param(case, has_manager, id=f"{name}-{'manager' if has_manager else 'alone'}")
        for name, case in CASES.items()
        for has_manager in ([False, True] if mounts(case) else [False])
    ],
)
def test_a_crash_at_any_step_loses_nothing(
    tmp_path: Path, parent: Parent, case: Case, *, has_manager: bool
) -> None:
    with ExitStack() as stack:
        manager = stack.enter_context(ServiceManager(tmp_path)) if has_manager else None
        plugin = stack.enter_context(CrashingPlugin(tmp_path, parent, manager))
        plugin.start()
        test = CrashTest(plugin, case)
        expected = case.steps | (case.with_manager if has_manager else case.without_manager)
        for _ in range(ROUNDS):
            test.crash_at_each_point()
            if crashed_steps(plugin) >= expected:
                break
        assert crashed_steps(plugin) == expected


def test_a_crash_at_any_step_of_the_first_start_is_completed_by_the_next_start(
    tmp_path: Path, parent: Parent
) -> None:
    found: set[str] = set()
    for number in count():
        directory = tmp_path / str(number)
        directory.mkdir()
        with CrashingPlugin(directory, parent) as plugin:
            plugin.crash_at(number)
            plugin.start()
            is_finished = plugin.cancel_crash()
            if not is_finished:
                plugin.start()
            assert plugin.call("VolumeDriver.List") == {"Volumes": []}
            assert plugin.call("VolumeDriver.Create", Name="vol") == {}
            found |= crashed_steps(plugin)
        if is_finished:
            break
    assert found == FIRST_START


def is_upgraded(manager: ServiceManager, program: str) -> bool:
    """Return whether the descriptors in the store are those of *program* alone."""
    stored = dict(manager.stored)
    pages = [fd for name, fd in stored.items() if name.startswith("co")]
    return len(stored) == len(KINDS) and control.read(pages[0]).program == program


def wait_for_upgrade(plugin: CrashingPlugin, manager: ServiceManager) -> None:
    """Wait until the plugin is dead, or has replaced the older program."""
    limit = time.monotonic() + START_S
    while not plugin.is_dead() and not is_upgraded(manager, plugin.environment["PROGRAM"]):
        assert time.monotonic() < limit, plugin.log.read_text()
        time.sleep(0.002)


def test_a_crash_at_any_step_of_an_upgrade_is_noticed_by_no_user(
    tmp_path: Path, parent: Parent
) -> None:
    with (
        ServiceManager(tmp_path) as manager,
        CrashingPlugin(tmp_path, parent, manager) as plugin,
    ):
        plugin.start()
        plugin.call("VolumeDriver.Create", Name="vol", Opts={"standby": "on"})
        target = Path(plugin.call("VolumeDriver.Mount", Name="vol", ID="i")["Mountpoint"])
        with closing(User(target / "file")) as user:
            for number in count():
                plugin.send(signal.SIGKILL)
                plugin.reap()
                plugin.environment["PROGRAM"] = str(number)
                plugin.crash_at(number)
                plugin.launch()
                wait_for_upgrade(plugin, manager)
                is_finished = plugin.cancel_crash()
                if plugin.is_dead():
                    plugin.start()
                wait_for_upgrade(plugin, manager)
                assert not plugin.is_dead()
                assert user.makes_progress(), plugin.log.read_text()
                if is_finished:
                    break
        assert crashed_steps(plugin) == UPGRADE
        plugin.call("VolumeDriver.Unmount", Name="vol", ID="i")
        assert manager.wait_for_count(0), manager.stored


def test_every_step_of_the_table_is_part_of_a_case() -> None:
    """Otherwise a row that names the wrong function would never be noticed."""
    covered = [case.steps | case.without_manager | case.with_manager for case in CASES.values()]
    assert set[str]().union(FIRST_START, UPGRADE, *covered) == STEPS.keys()
