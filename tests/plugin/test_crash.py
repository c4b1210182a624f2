"""kill -9 of the plugin at every step of everything that it does.

Between two of its moments (support/tools/steps.py) nothing changes outside of its memory, so that
being killed at each of them stands for being killed at any time. The inside of a commit, which is
SQLite's, is in test_registry.py.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set as AbstractSet
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from plugin.mounting.fd_store import KINDS
from tests.support.fakes.manager import Manager
from tests.support.tools.service import START_S
from tests.support.tools.steps import STEPS, Mortal, Nest

DATA = "what its user has written"

# The steps of two tasks that run at once come in one order or in the other, and so one of them may
# be passed over by a walk; not by several.
WALKS = 5

RECORD = {"commit", "answer"}
OWN = {
    *("make a directory", "give a directory its owner", "give a directory its mode"),
    "sync a directory",
}
MOUNT = {"make a directory", "mount", "start a worker", "hand over"}
UNMOUNT = {"unmount", "let a mount go", "remove a directory"}
ASIDE = {"move a directory", "sync a directory"}
DELETE = {"move a file", "remove a file", "remove a directory"}
KEEP, TELL = {"have descriptors kept"}, {"tell the service manager"}
START = TELL | {
    *("make a directory", "remove a file", "listen", "commit", "start the fork server"),
    "answer",
}
FIRST_START = START | {"move a file", "sync a directory"}


class Case(NamedTuple):
    """What is walked through."""

    before: Sequence[str]
    """What has been done: verbs, some with a mount id, and what else can happen."""
    act: str
    """What is done while the plugin is killed."""
    steps: AbstractSet[str]
    """What it consists of."""
    alone: AbstractSet[str] = frozenset()
    """And what else without a service manager."""
    kept: AbstractSet[str] = frozenset()
    """And what else with one."""
    own: bool = True
    """Whether the volume has no source."""


CASES = {
    "create": Case((), "Create", RECORD | OWN),
    "create-source": Case((), "Create", RECORD, own=False),
    "mount": Case(("Create",), "Mount j", RECORD | MOUNT, kept=KEEP),
    "mount-more": Case(("Create", "Mount i"), "Mount j", RECORD, own=False),
    "mount-same": Case(("Create", "Mount j"), "Mount j", RECORD),
    "heal": Case(
        ("Create", "Mount i", "worker dies"), "Mount j", RECORD | MOUNT | UNMOUNT, kept=KEEP
    ),
    "unmount": Case(("Create", "Mount i", "Mount j"), "Unmount j", RECORD),
    "unmount-last": Case(("Create", "Mount j"), "Unmount j", RECORD | UNMOUNT, kept=TELL),
    "remove": Case(("Create",), "Remove", RECORD | ASIDE | DELETE),
    "remove-source": Case(("Create",), "Remove", RECORD, own=False),
    "remove-leak": Case(
        ("Create", "Mount i"), "Remove", RECORD | UNMOUNT | ASIDE | DELETE, kept=TELL
    ),
    "end": Case(
        ("Create", "Mount i"), "end", TELL | {"let a mount go", "remove a file"}, alone=UNMOUNT
    ),
    "start": Case(
        ("Create", "Mount i", "kill"), "start", START, alone={"unmount", "remove a directory"}
    ),
    "give-back": Case(("Create", "kill", "half of a removal"), "start", START | ASIDE),
}


class Volume(NamedTuple):
    """What a crash leaves as it was, or as it was to be, of the volume `v`."""

    exists: bool = False
    own: bool = False
    references: int = 0
    data: str = ""


class Walk:
    """One case, and the plugin that goes through it again and again."""

    def __init__(self, plugin: Mortal, case: Case) -> None:
        self.plugin = plugin
        self.case = case
        self.data_dir = plugin.directory / "data"
        self.target = plugin.directory / "mounts" / "vol"
        self.source = plugin.directory / "source"
        self.source.mkdir()

    def attempt(self, what: str) -> Any:
        """Do *what*, which is not refused; gives the answer, None if none came."""
        if (other := OTHERS.get(what)) is not None:
            return other(self)
        verb, _, mount_id = what.partition(" ")
        options = {} if self.case.own else {"source": str(self.source)}
        reply = self.plugin.attempt(f"VolumeDriver.{verb}", Name="vol", ID=mount_id, Opts=options)
        assert reply is None or not reply.get("Err"), (what, reply)
        return reply

    def do(self, what: str) -> Any:
        """Do *what*, which succeeds; gives the answer."""
        reply = self.attempt(what)
        assert reply is not None or what in OTHERS, (what, self.plugin.log.read_text())
        return reply

    def prepare(self) -> None:
        """Do what comes before the act, with data in the volume."""
        for what in self.case.before:
            self.do(what)
            if what == "Create":
                (self.files / "file").write_text(DATA)
                (self.files / "more").mkdir(exist_ok=True)

    @property
    def files(self) -> Path:
        """Where the files of the volume lie."""
        return self.data_dir / "volumes" / "vol" if self.case.own else self.source

    def volume(self) -> Volume:
        """What there is of the volume."""
        volumes = self.plugin.call("VolumeDriver.List")["Volumes"]
        if not volumes:
            return Volume()
        (status,) = (volume["Status"] for volume in volumes)
        file = self.files / "file"
        return Volume(
            exists=True,
            own="data" in status,
            references=status["references"],
            data=file.read_text() if file.exists() else "",
        )

    def is_mounted(self) -> bool:
        """Whether the plugin says that the volume is mounted; nothing else is mounted then."""
        volumes = self.plugin.call("VolumeDriver.List")["Volumes"]
        claimed = ["vol" for volume in volumes if volume["Status"]["mounted"]]
        assert self.plugin.mounted() == claimed
        return bool(claimed)

    def is_quiet(self) -> bool:
        """Whether nothing is done any more behind the last answer."""
        manager = self.plugin.manager
        kept = 0 if manager is None else len(manager.kept)
        wanted = 0 if manager is None else len(KINDS) * len(self.plugin.mounted())
        return kept == wanted and not list((self.data_dir / "trash").iterdir())

    def settle(self) -> None:
        """Wait until nothing is done any more; or is dead."""
        limit = time.monotonic() + START_S
        while not self.plugin.is_dead() and not self.is_quiet():
            assert time.monotonic() < limit, self.plugin.log.read_text()
            time.sleep(0.002)

    def clear(self) -> None:
        """Give back what users have of the volume, and remove it; nothing is left of it."""
        for what in (*self.case.before, self.case.act):
            verb, _, mount_id = what.partition(" ")
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

    def revive(self) -> None:
        """Start the plugin again if it has ended."""
        if self.plugin.is_dead():
            self.plugin.start()
            assert not self.plugin.is_dead(), self.plugin.log.read_text()
            self.settle()

    def again(self) -> None:
        """Ask again for what has been asked for; it succeeds, and what it promises is true."""
        verb = self.case.act.partition(" ")[0]
        if self.case.act in OTHERS or (verb == "Remove" and not self.volume().exists):
            return
        answer = self.do(self.case.act)
        if verb == "Mount":
            assert answer["Mountpoint"] == str(self.target)
            assert (self.target / "file").read_text() == DATA
            self.use()
        elif verb == "Create":
            self.do("Mount z")
            self.use()
            self.do("Unmount z")

    def use(self) -> None:
        """Write through the mount."""
        (self.target / "written").write_text(DATA)
        assert (self.files / "written").read_text() == DATA

    def through(self) -> None:
        """Have the plugin killed at each moment of the act, until there is none left."""
        self.prepare()
        old = [] if self.plugin.is_dead() else [self.volume()]
        if self.case.act == "Remove":  # users who were counted and are none are forgotten first
            old += [volume._replace(references=0) for volume in old]
        was_mounted = self.plugin.mounted() == ["vol"] and "worker dies" not in self.case.before
        self.do(self.case.act)
        self.settle()
        stays = self.plugin.manager is not None and was_mounted and self.plugin.mounted() == ["vol"]
        self.revive()
        new = self.volume()
        self.clear()
        for moment in count():
            self.prepare()
            with self.used() if stays else nullcontext():
                self.plugin.doom(moment)
                answer = self.attempt(self.case.act)
                self.settle()
                is_spared = self.plugin.spare()
                if is_spared and not self.plugin.is_dead():
                    kill(self)
                assert len(self.plugin.mounted()) <= 1
                if stays:
                    self.use()
                self.revive()
            assert self.volume() in ([new] if answer is not None else [*old, new])
            assert self.is_mounted() or not stays
            self.again()
            self.clear()
            if is_spared:
                return

    @contextmanager
    def used(self) -> Iterator[None]:
        """Have somebody use the volume, who must not notice anything."""
        with (self.target / "file").open() as file:
            yield
            # Its file system is alive as long as the file is open: no other has its number.
            assert os.fstat(file.fileno()).st_dev == self.target.stat().st_dev
            assert file.read() == DATA
            self.use()


def kill(walk: Walk) -> None:
    walk.plugin.send(signal.SIGKILL)
    walk.plugin.bury()


def end(walk: Walk) -> None:
    walk.plugin.send(signal.SIGTERM)
    assert walk.plugin.is_dead(START_S)


def start(walk: Walk) -> object:
    walk.plugin.start()
    return None if walk.plugin.is_dead() else "it answers"


def worker_dies(walk: Walk) -> None:
    (volume,) = walk.plugin.call("VolumeDriver.List")["Volumes"]
    os.kill(volume["Status"]["worker_pid"], signal.SIGKILL)
    limit = time.monotonic() + START_S
    while walk.plugin.call("VolumeDriver.List")["Volumes"][0]["Status"]["mounted"]:
        assert time.monotonic() < limit
        time.sleep(0.002)
    assert walk.plugin.manager is None or walk.plugin.manager.keeps(0)


def half_of_a_removal(walk: Walk) -> None:
    (walk.data_dir / "volumes" / "vol").rename(walk.data_dir / "removed" / "vol")


OTHERS: Mapping[str, Callable[[Walk], object]] = {
    "kill": kill,
    "end": end,
    "start": start,
    "worker dies": worker_dies,
    "half of a removal": half_of_a_removal,
}


@pytest.fixture(scope="module")
def nest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nest]:
    with Nest(tmp_path_factory.mktemp("nest")) as nest:
        yield nest


def steps(plugin: Mortal) -> set[str]:
    """Where it has been killed."""
    assert "Traceback" not in plugin.log.read_text()
    return {moment.partition(": ")[2] for moment in plugin.deaths}


def mounts(case: Case) -> bool:
    """Whether a volume is mounted meanwhile, which is what a service manager has to do with."""
    return any(what.startswith("Mount") for what in (*case.before, case.act))


@pytest.mark.parametrize(
    ("case", "is_kept"),
    [
        pytest.param(case, is_kept, id=f"{name}-{'kept' if is_kept else 'alone'}")
        for name, case in CASES.items()
        for is_kept in ([False, True] if mounts(case) else [False])
    ],
)
def test_it_may_be_killed_at_any_step(
    tmp_path: Path, nest: Nest, case: Case, *, is_kept: bool
) -> None:
    with ExitStack() as stack:
        manager = stack.enter_context(Manager(tmp_path)) if is_kept else None
        plugin = stack.enter_context(Mortal(tmp_path, nest, manager))
        plugin.start()
        walk, expected = Walk(plugin, case), case.steps | (case.kept if is_kept else case.alone)
        for _ in range(WALKS):
            walk.through()
            if steps(plugin) >= expected:
                break
        assert steps(plugin) == expected


def test_its_first_start_may_be_cut_off(tmp_path: Path, nest: Nest) -> None:
    """At any step; the next start makes what is missing."""
    found: set[str] = set()
    for moment in count():
        directory = tmp_path / str(moment)
        directory.mkdir()
        with Mortal(directory, nest) as plugin:
            plugin.doom(moment)
            plugin.start()
            is_spared = plugin.spare()
            if not is_spared:
                plugin.start()
            assert plugin.call("VolumeDriver.List") == {"Volumes": []}
            assert plugin.call("VolumeDriver.Create", Name="vol") == {}
            found |= steps(plugin)
        if is_spared:
            break
    assert found == FIRST_START


def test_every_step_is_one_of_something() -> None:
    """A row that nothing consists of would be one that never counts."""
    consists = [case.steps | case.alone | case.kept for case in CASES.values()]
    assert set[str]().union(FIRST_START, *consists) == STEPS.keys()
