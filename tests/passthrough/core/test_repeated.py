"""Requests that a worker had in hand when it died, served again by its successor.

The tests serve a request once, take back what it has counted and opened, as a successor does, and
serve it again with the journal of the first time.
"""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from passthrough.options.effective import Effective
from passthrough.session.abi import Init, Opcode
from tests.passthrough.core.probe_journal import call
from tests.passthrough.core.probe_repeated import noted, serve_again, set_time, was_called
from tests.support.fakes.kernel import EVERYTHING, Kernel, Reply, message, text
from tests.support.tools import wire
from tests.support.tools.abi import ROOT_ID, Notification
from tests.support.tools.core_operations import (
    MODE,
    NAMES,
    NOTED,
    OPERATIONS,
    REFUSED,
    Request,
    closing,
    granted,
    opened,
    prepare,
    shown,
    tree,
)
from tests.support.tools.core_standby import PLAIN, SQUASHED
from tests.support.tools.host_calls import RENAME_EXCHANGE, RENAME_WHITEOUT
from tests.support.tools.implementations import CoreSession

OFFERED = EVERYTHING & ~Init.PASSTHROUGH
Between = Callable[[Path], object]


class Repeating(CoreSession):
    """Serves a request twice if `repeats`, as if a worker had died after the first time."""

    def __init__(self, source: Path, options: Effective) -> None:
        super().__init__(source, options)
        self.repeats = False
        self.between: Callable[[], object] = lambda: None
        """The acts of other processes between both times."""
        self.noted_late_s = 0.0
        """How much later than the time of the call the note is."""
        self.called = False
        """Whether the last request has noted a call."""
        self.opened: list[tuple[int, int]] = []
        """The opcodes and fh to close all that was opened."""

    def answer(self, request: bytes) -> bytes | None:
        """Serve a request, and note what it has opened."""
        reply = self.serve(request)
        opcode = wire.IN_HEADER.unpack_from(request)[1]
        if reply and (fh := opened(opcode, reply[wire.OUT_HEADER.size :])):
            self.opened.append((closing(opcode), fh))
        return reply

    def serve(self, request: bytes) -> bytes | None:
        """Serve a request once or twice; between, take back what it has counted and opened."""
        core = self._served.core
        reply = core.answer(request)
        self.called = was_called(core)
        if not self.repeats:
            return reply
        self.repeats = False
        set_time(core, self.noted_late_s)
        journal = noted(core)
        for undo in taken_back(wire.IN_HEADER.unpack_from(request)[1], reply or b""):
            core.answer(undo)
        self.between()
        return serve_again(core, request, journal)

    def serve_unmade(self, request: bytes) -> bytes | None:
        """Serve a request of a worker that died right before the call."""
        core = self._served.core
        core.answer(message(Opcode.STATFS))
        call(core)
        return serve_again(core, request, noted(core))

    @property
    def left(self) -> tuple[int, int, int]:
        """Return the numbers of known inodes and of open files and directories."""
        core = self._served.core
        return core.inodes, core.files, core.directories


def taken_back(opcode: int, reply: bytes) -> list[bytes]:
    """Return the requests that take back what a reply has counted and opened."""
    if not reply:
        return []
    _, error, _ = wire.OUT_HEADER.unpack_from(reply)
    body = reply[wire.OUT_HEADER.size :]
    requests = []
    if not error and (fh := opened(opcode, body)):
        requests.append(message(closing(opcode), wire.RELEASE_IN.pack(fh, 0, 0, 0)))
    forget = wire.FORGET_IN.pack(1)
    nodeids = [] if error else granted(opcode, body)
    return [*requests, *(message(Opcode.FORGET, forget, nodeid) for nodeid in nodeids)]


class Scene:
    """A prepared source with a session and a kernel; a context manager."""

    def __init__(self, directory: Path, options: Effective = PLAIN) -> None:
        self.source = directory / "source"
        self.source.mkdir(parents=True)
        prepare(self.source)
        self.source.chmod(0o777)
        self.session = Repeating(self.source, options)
        self.kernel = Kernel(self.session, OFFERED)
        self.left = self.session.left

    def ask(self, name: str) -> Reply:
        """Do an operation of the table."""
        return self.send(OPERATIONS[name](self.kernel))

    def ask_twice(
        self, name: str, between: Between = lambda _: None, noted_late_s: float = 0.0
    ) -> Reply:
        """Do an operation of the table that is served twice."""
        return self.send_twice(OPERATIONS[name](self.kernel), between, noted_late_s)

    def send(self, request: Request) -> Reply:
        """Send a request; forget the notifications before it."""
        self.kernel.notifications.clear()
        return self.kernel.ask(*request)

    def send_twice(
        self, request: Request, between: Between = lambda _: None, noted_late_s: float = 0.0
    ) -> Reply:
        """Send a request that is served twice."""
        self.session.repeats = True
        self.session.between = lambda: between(self.source)
        self.session.noted_late_s = noted_late_s
        return self.send(request)

    def finish(self) -> None:
        """Close and forget everything; nothing is left over then."""
        for opcode, fh in list(self.session.opened):
            self.kernel.ask(opcode, wire.RELEASE_IN.pack(fh, 0, 0, 0))
        self.kernel.forget_all()
        assert self.session.left == self.left
        self.session.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A scene in which nothing may be left over."""
    scene = Scene(tmp_path)
    yield scene
    scene.finish()


class Outcome(NamedTuple):
    """The reply of an operation, and its traces on the host."""

    error: str
    shown: object
    tree: dict[str, tuple[object, ...]]


def outcome(scene: Scene, request: Request, reply: Reply) -> Outcome:
    """Return the outcome of a request; close and forget everything."""
    body = None if reply.error else shown(request.opcode, reply.body)
    found = Outcome(errno.errorcode.get(reply.error, ""), body, tree(scene.source))
    scene.finish()
    return found


def once(directory: Path, name: str, options: Effective) -> Outcome:
    """Do an operation that is served once."""
    scene = Scene(directory, options)
    request = OPERATIONS[name](scene.kernel)
    return outcome(scene, request, scene.send(request))


@pytest.mark.parametrize("options", [PLAIN, SQUASHED], ids=["plain", "squashed"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_that_was_made_ends_as_one_that_is_served_once(
    name: str, options: Effective, tmp_path: Path
) -> None:
    scene = Scene(tmp_path / "twice", options)
    request = OPERATIONS[name](scene.kernel)

    reply = scene.send_twice(request)

    assert outcome(scene, request, reply) == once(tmp_path / "once", name, options)


@pytest.mark.parametrize("options", [PLAIN, SQUASHED], ids=["plain", "squashed"])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in REFUSED])
def test_an_operation_that_was_noted_and_not_made_is_made(
    name: str, options: Effective, tmp_path: Path
) -> None:
    scene = Scene(tmp_path / "unmade", options)
    request = OPERATIONS[name](scene.kernel)
    scene.session.serve = scene.session.serve_unmade  # type: ignore[method-assign]

    reply = scene.send(request)

    del scene.session.serve
    assert outcome(scene, request, reply) == once(tmp_path / "once", name, options)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_call_that_must_not_be_made_twice_is_noted(name: str, scene: Scene) -> None:
    scene.ask(name)

    assert scene.session.called == (name in NOTED)


# Not of the request


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.startswith(("mk", "symlink", "link", "create"))]
)
def test_a_file_that_is_older_than_the_note_is_another_one(name: str, scene: Scene) -> None:
    scene.ask(name)

    reply = scene.ask_twice(name, noted_late_s=1)

    plain = name.startswith("create") and "exclusively" not in name and "rights" not in name
    assert reply.error == (errno.ESTALE if plain else errno.EEXIST)


def _replace(source: Path, kind: Callable[[Path], object]) -> None:
    path = source / "new"
    path.rmdir() if path.is_dir() else path.unlink()
    kind(path)


@pytest.mark.parametrize("name", ["mkdir", "mknod of a fifo", "create exclusively", "link"])
def test_a_file_of_another_type_is_another_one(name: str, scene: Scene) -> None:
    def between(source: Path) -> None:
        _replace(source, lambda path: path.symlink_to("target"))

    assert scene.ask_twice(name, between).error == errno.EEXIST


def test_a_symlink_with_another_target_is_another_one(scene: Scene) -> None:
    def between(source: Path) -> None:
        _replace(source, lambda path: path.symlink_to("elsewhere"))

    assert scene.ask_twice("symlink", between).error == errno.EEXIST


def test_another_device_is_another_one(scene: Scene) -> None:
    def between(source: Path) -> None:
        _replace(source, lambda path: os.mknod(path, 0o020640, os.makedev(1, 5)))

    assert scene.ask_twice("mknod of a device", between).error == errno.EEXIST


@pytest.mark.parametrize("name", ["unlink", "rmdir", "rename", "rename without replacing"])
def test_a_name_that_was_not_there_is_not_found(name: str, scene: Scene) -> None:
    scene.ask(name)
    for path in scene.source.glob("new"):
        path.unlink()

    assert scene.ask_twice(name, noted_late_s=1).error == errno.ENOENT


def test_a_file_that_did_not_move_is_not_taken_for_the_one_that_is_missing(scene: Scene) -> None:
    (scene.source / "file").unlink()

    assert scene.ask_twice("rename over", noted_late_s=1).error == errno.ENOENT


@pytest.mark.parametrize("name", ["unlink", "rename", "rename over", "rename without replacing"])
def test_a_file_that_another_process_has_made_by_the_old_name_stays(
    name: str, scene: Scene
) -> None:
    def between(source: Path) -> None:
        (source / "file").write_bytes(b"of another process")

    assert scene.ask_twice(name, between, noted_late_s=-1).error == 0

    assert (scene.source / "file").read_bytes() == b"of another process"
    if name != "unlink":
        path = scene.source / ("other" if name == "rename over" else "new")
        assert path.read_bytes() == b"content"


def test_an_attribute_with_another_value_is_another_one(scene: Scene) -> None:
    def between(source: Path) -> None:
        os.setxattr(source / "file", "user.b", b"new number")

    assert scene.ask_twice("setxattr that creates", between).error == errno.EEXIST


def test_an_attribute_of_a_file_that_its_owner_cannot_read_is_recognised(tmp_path: Path) -> None:
    scene = Scene(tmp_path, SQUASHED)
    os.chown(scene.source / "file", 41_003, 41_004)
    (scene.source / "file").chmod(0o200)

    assert scene.ask_twice("setxattr that creates").error == 0

    scene.finish()


# Exchanged


@pytest.mark.parametrize("flags", [RENAME_EXCHANGE, RENAME_WHITEOUT])
def test_two_names_of_one_file_stay(flags: int, scene: Scene) -> None:
    (scene.source / "new").hardlink_to(scene.source / "file")
    body = wire.RENAME2_IN.pack(ROOT_ID, flags) + text(b"file", b"new")
    before = tree(scene.source)

    assert scene.send_twice(Request(Opcode.RENAME2, body)).error == 0

    assert tree(scene.source) == before


@pytest.mark.parametrize("flags", [RENAME_EXCHANGE, RENAME_WHITEOUT])
def test_a_rename_of_a_missing_name_is_refused_twice(flags: int, scene: Scene) -> None:
    body = wire.RENAME2_IN.pack(ROOT_ID, flags) + text(b"missing", b"file")
    before = tree(scene.source)

    assert scene.send_twice(Request(Opcode.RENAME2, body)).error == errno.ENOENT

    assert tree(scene.source) == before


# Data


@pytest.mark.parametrize("name", ["append", "append synchronously"])
@pytest.mark.parametrize("length", range(5))
def test_an_append_that_a_death_has_cut_is_completed(name: str, length: int, scene: Scene) -> None:
    def between(source: Path) -> None:
        os.truncate(source / "file", len(b"content") + length)

    reply = scene.ask_twice(name, between)

    assert wire.WRITE_OUT.unpack(reply.body) == (4,)
    assert (scene.source / "file").read_bytes() == b"contentdata"


@pytest.mark.parametrize("found", [b"contentline\ndata", b"contentdataline\n"])
def test_an_append_beside_another_process_is_found(found: bytes, scene: Scene) -> None:
    def between(source: Path) -> None:
        (source / "file").write_bytes(found)

    assert scene.ask_twice("append", between).error == 0

    assert (scene.source / "file").read_bytes() == found


def test_an_append_is_made_behind_another_one(scene: Scene) -> None:
    def between(source: Path) -> None:
        (source / "file").write_bytes(b"contentline\n")

    assert scene.ask_twice("append", between).error == 0

    assert (scene.source / "file").read_bytes() == b"contentline\ndata"


def test_a_long_append_is_completed(scene: Scene) -> None:
    data = bytes(range(256)) * 4096
    nodeid = scene.kernel.lookup(b"file")
    flags = os.O_WRONLY | os.O_APPEND
    fh = scene.kernel.open(nodeid, flags)
    body = wire.WRITE_IN.pack(fh, 0, len(data), 0, 0, flags) + data

    def between(source: Path) -> None:
        os.truncate(source / "file", 700_001)

    reply = scene.send_twice(Request(Opcode.WRITE, body, nodeid), between)

    assert wire.WRITE_OUT.unpack(reply.body) == (len(data),)
    assert (scene.source / "file").read_bytes() == b"content" + data


# Suid and sgid bits


@pytest.mark.parametrize("name", ["write that clears", "append that clears", "copy"])
def test_the_kernel_hears_of_bits_that_the_dead_worker_took(name: str, scene: Scene) -> None:
    scene.ask_twice(name)

    codes = [code for code, _ in scene.kernel.notifications]
    assert Notification.INVAL_INODE in codes
    assert (scene.source / "program").stat().st_mode == 0o100777


def test_a_writer_takes_bits_away_twice(tmp_path: Path) -> None:
    scene = Scene(tmp_path, SQUASHED)
    nodeid = scene.kernel.lookup(b"program")
    os.chown(scene.source / "program", 7, 8)
    (scene.source / "program").chmod(0o4777)
    scene.kernel.open(nodeid, os.O_WRONLY)
    body = wire.SETATTR_IN.pack(MODE, *[0] * 9, 0o777, 0, 0)

    assert scene.send_twice(Request(Opcode.SETATTR, body, nodeid)).error == 0

    assert (scene.source / "program").stat().st_mode == 0o100777
    scene.finish()
