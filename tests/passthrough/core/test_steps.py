"""Each operation with a death at each of its steps: a successor ends it as if nothing had happened.

The core is one of the kind `steps`. If this checkout is not, the tests build one of their own.
"""

import errno
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from passthrough.session.abi import Init, Opcode
from tests.support.fakes.kernel import EVERYTHING, Kernel, Reply
from tests.support.tools import wire
from tests.support.tools.abi import ROOT_ID
from tests.support.tools.core_builds import BUILD_LIMIT_S
from tests.support.tools.core_operations import (
    ALWAYS,
    APPENDS_A_PART,
    OPERATIONS,
    closing,
    opened,
    prepare,
    shown,
    steps,
    tree,
)
from tests.support.tools.core_standby import LIMIT_S, Standby

pytestmark = pytest.mark.timeout(BUILD_LIMIT_S)

APPENDS = 16
"""So many that each thread has served one."""
OFFERED = EVERYTHING & ~Init.PASSTHROUGH


class Patient(Kernel):
    """A kernel that closes what was opened, and waits: another thread may serve a FORGET."""

    def __init__(self, session: Standby) -> None:
        self.opened: list[tuple[int, int, int]] = []
        super().__init__(session, OFFERED)

    def ask(self, opcode: int, body: bytes = b"", nodeid: int = ROOT_ID) -> Reply:
        """As of a kernel."""
        reply = super().ask(opcode, body, nodeid)
        if not reply.error and (fh := opened(opcode, reply.body)):
            self.opened.append((closing(opcode), fh, nodeid))
        return reply

    def knows(self, nodeid: int) -> bool:
        """Return whether the session knows *nodeid* for long."""
        return not soon(lambda: not super(Patient, self).knows(nodeid))

    def finish(self) -> None:
        """Close and forget everything."""
        for opcode, fh, nodeid in self.opened:
            self.ask(opcode, wire.RELEASE_IN.pack(fh, 0, 0, 0), nodeid)
        self.opened.clear()
        self.forget_all()


def soon(is_so: Callable[[], bool]) -> bool:
    """Return whether a condition comes true."""
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


class Outcome(NamedTuple):
    """The reply of an operation, and its traces on the host."""

    error: str
    shown: object
    tree: dict[str, tuple[object, ...]]


class Stage:
    """A source that is prepared for each operation, and a session that dies and goes on."""

    def __init__(self, build: Path, source: Path, options: str) -> None:
        self.source, self.options = source, options
        source.mkdir(parents=True)
        source.chmod(0o777)
        self.session = Standby(build, source, options)
        self.kernel = Patient(self.session)
        self.word = self.session.word()
        self.deaths = 0
        self._descriptors = self._count("STATFS")

    def act(self, name: str, step: str | None = None, *, twice: bool = False) -> Outcome:
        """Do an operation on a fresh tree, with a death at *step*; nothing may be left over."""
        prepare(self.source)
        request = OPERATIONS[name](self.kernel)
        if step is not None:
            self.word.arm(step, twice=twice)
        reply = self.kernel.ask(*request)
        if step == "SENT":  # the reply is here before the death
            assert soon(lambda: not self.word.is_armed())
        if step is not None:
            self._count_deaths(name, step, twice=twice)
        body = None if reply.error else shown(request.opcode, reply.body)
        found = Outcome(errno.errorcode.get(reply.error, ""), body, tree(self.source))
        self.kernel.finish()
        self.clear()
        assert soon(lambda: self._count() <= self._descriptors)
        return found

    def _count_deaths(self, name: str, step: str, *, twice: bool) -> None:
        """Count those of an operation; the host may refuse a squashed caller before a step."""
        left = self.word.disarm()
        assert left < 1 + twice or (step not in ALWAYS and self.options != "plain"), (name, step)
        self.deaths += 1 + twice - left

    def _count(self, asks: str = "") -> int:
        """Return the number of descriptors."""
        if asks:
            self.kernel.ask(Opcode[asks])
        return self.session.descriptors()

    def clear(self) -> None:
        for path in self.source.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.fixture(scope="module", params=["plain", "squashed"])
def stage(
    request: pytest.FixtureRequest, steps_build: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """A stage for all operations; each death must have been one that was asked for."""
    stage = Stage(steps_build, tmp_path_factory.mktemp("stage") / "source", request.param)
    with stage.word:
        yield stage
    stage.session.close()
    left = {"inodes": 1, "files": 0, "directories": 0, "deaths": stage.deaths}
    assert stage.session.left == left


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_death_at_any_step_has_no_effect(name: str, stage: Stage) -> None:
    expected = stage.act(name)

    for step in steps(name):
        assert (step, stage.act(name, step)) == (step, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_two_deaths_at_any_step_have_no_effect(name: str, stage: Stage) -> None:
    expected = stage.act(name)

    for step in steps(name):
        assert (step, stage.act(name, step, twice=True)) == (step, expected)


@pytest.mark.slow
def test_an_append_is_made_although_a_former_size_is_noted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clearing of suid and sgid bits notes a call, too, and the thread dies there."""
    name = "append that clears"
    monkeypatch.setitem(OPERATIONS, name, APPENDS_A_PART)
    expected = stage.act(name)
    prepare(stage.source)
    for _ in range(APPENDS):
        (stage.source / "file").write_bytes(b"")
        stage.kernel.ask(*OPERATIONS["append"](stage.kernel))
    stage.kernel.finish()
    stage.clear()

    assert stage.act(name, "CALLING") == expected


@pytest.mark.slow
@pytest.mark.parametrize("passes", range(3))
@pytest.mark.parametrize("step", ["TAKEN", "BEGUN", "FORGETTING", "FORGOTTEN", "SERVED"])
def test_lookups_are_given_back_once(step: str, passes: int, stage: Stage) -> None:
    prepare(stage.source)
    names = [b"file", b"other", b"blocks"]
    forgotten = [stage.kernel.lookup(name) for name in names]
    kept = [stage.kernel.lookup(name) for name in names[:2]]
    stage.kernel.granted = kept
    rows = b"".join(wire.FORGET_ONE.pack(nodeid, 1) for nodeid in forgotten)

    stage.word.arm(step, passes=passes if "FORG" in step else 0)
    stage.kernel.tell(Opcode.BATCH_FORGET, wire.BATCH_FORGET_IN.pack(len(forgotten)) + rows)

    assert soon(lambda: not stage.word.is_armed())
    stage.deaths += 1
    assert not stage.kernel.knows(forgotten[-1])
    for nodeid in kept:
        assert stage.kernel.ask(Opcode.GETATTR, wire.GETATTR_IN.pack(0, 0), nodeid).error == 0
    stage.kernel.finish()
    stage.clear()


@pytest.mark.slow
def test_a_death_counts_when_the_process_has_ended(stage: Stage) -> None:
    with stage.session.alone():
        stage.word.arm("SERVED")
        stage.kernel.tell(Opcode.BATCH_FORGET, wire.BATCH_FORGET_IN.pack(0))
        assert soon(lambda: not stage.session.serves())
        assert stage.word.is_armed()

    assert soon(lambda: not stage.word.is_armed())
    stage.deaths += 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "removed"), [("unlink", b"file"), ("rename over", b"other")])
def test_a_removed_file_keeps_its_number(
    name: str, removed: bytes, steps_build: Path, tmp_path: Path
) -> None:
    """A descriptor that its inode keeps prevents that the host gives the number to a new file."""
    stage = Stage(steps_build, tmp_path / "source", "by handle")
    with stage.word:
        for step in ("BEGUN", "CALLING", "MADE", "SERVED", "SENT"):
            prepare(stage.source)
            stage.kernel.lookup(removed)
            request = OPERATIONS[name](stage.kernel)
            stage.word.arm(step, twice=True)
            assert stage.kernel.ask(*request).error == 0
            assert soon(lambda: not stage.word.is_armed())

            assert (step, soon(lambda: stage.session.removed(stage.source) == 1)) == (step, True)
            stage.kernel.finish()
            assert soon(lambda: stage.session.removed(stage.source) == 0)
            stage.clear()
    stage.session.close()
    assert stage.session.left == {"inodes": 1, "files": 0, "directories": 0, "deaths": 10}


@pytest.mark.slow
def test_a_request_counts_once_although_a_worker_dies(steps_build: Path, tmp_path: Path) -> None:
    stage = Stage(steps_build, tmp_path / "source", "plain")
    prepare(stage.source)
    with stage.word:
        link = stage.kernel.lookup(b"link")
        for step in ALWAYS:
            stage.word.arm(step)
            assert stage.kernel.ask(Opcode.READLINK, nodeid=link).body == b"file"
            assert soon(lambda: not stage.word.is_armed())
        stage.kernel.finish()
    stage.session.close()
    assert stage.session.left["deaths"] == len(ALWAYS)
    requests = stage.session.requests
    assert (requests["READLINK"], requests["LOOKUP"]) == (len(ALWAYS), 1)
