"""The core as Python sees it: calls beside threads that serve, and after the end."""

import contextlib
import errno
import fcntl
import gc
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough.core.face import Core
from passthrough.options.choices import SessionKind
from passthrough.session.abi import Opcode
from passthrough.session.rare import Rare
from tests.support.fakes.kernel import entry, text
from tests.support.tools import abi, wire
from tests.support.tools.callers import ROOT
from tests.support.tools.checks import fails
from tests.support.tools.options import effective

CONFIG = effective(session=SessionKind.KERNEL)
FLOCK = 1  # FUSE_LK_FLOCK


def made(source: Path) -> Core:
    return Core(CONFIG, os.open(source, os.O_PATH | os.O_DIRECTORY), Rare(CONFIG))


@contextlib.contextmanager
def serving(core: Core) -> Iterator[socket.socket]:
    """Have threads of *core* serve a socket in place of /dev/fuse; give its other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        core.use_device(theirs.fileno())
        core.start()
        yield ours
        core.stop()
        ours.shutdown(socket.SHUT_RDWR)
        while not core.close():
            time.sleep(0.001)


def locking(core: Core) -> Callable[[Opcode], bytes]:
    """Open the file; return what locks the whole of it by a request."""
    nodeid, body = lock_of(core)
    return lambda opcode: core.call(opcode, nodeid, 0, 0, 1, body)


def lock_of(core: Core) -> tuple[int, bytes]:
    """Open the file; return its nodeid, and the body of a request for a lock of all of it."""
    nodeid = entry(core.call(Opcode.LOOKUP, abi.ROOT_ID, 0, 0, 1, text(b"file")))["nodeid"]
    opening = wire.OPEN_IN.pack(os.O_RDWR, 0)
    fh = wire.OPEN_OUT.unpack(core.call(Opcode.OPEN, nodeid, 0, 0, 1, opening))[0]
    return nodeid, wire.LK_IN.pack(fh, 1, 0, 0, fcntl.F_WRLCK, 1, FLOCK)


def test_python_calls_the_core_beside_threads_that_serve(source: Path) -> None:
    """Such a call blocks, waits, and lets others finish as a thread of no pool."""
    (source / "file").write_bytes(bytes(100))

    def run() -> None:
        core = made(source)
        with serving(core), (source / "file").open("r+b") as held:
            lock = locking(core)
            fcntl.flock(held, fcntl.LOCK_EX)
            fails(errno.EAGAIN, lambda: lock(Opcode.SETLK))
            unlocking = threading.Timer(0.2, lambda: fcntl.flock(held, fcntl.LOCK_UN))
            unlocking.start()
            lock(Opcode.SETLKW)
            unlocking.join()

    ROOT.run(run)


USES: dict[str, Callable[[Core], object]] = {
    "answer": lambda core: core.answer(bytes(wire.IN_HEADER.size)),
    "call": lambda core: core.call(Opcode.STATFS, abi.ROOT_ID, 0, 0, 1, b""),
    "ask": lambda core: core.ask(Opcode.STATFS, abi.ROOT_ID, 0, 0, 1, b""),
    "flags_of": lambda core: core.flags_of(0),
    "trim": lambda core: core.trim(),
    "serve_one": lambda core: core.serve_one(),
    "try_passthrough": lambda core: core.try_passthrough(),
    "start": lambda core: core.start(),
    "watch": lambda core: core.watch(-1, -1),
    "use_device": lambda core: core.use_device(5),
    "agree": lambda core: core.agree(0, 0, False),
    "pass_nothing_through": lambda core: core.pass_nothing_through(),
    "inodes": lambda core: core.inodes,
    "files": lambda core: core.files,
    "directories": lambda core: core.directories,
    "source_type": lambda core: core.source_type,
}
"""The uses that a closed core refuses."""


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_closed_core_is_used_no_more(source: Path, use: Callable[[Core], object]) -> None:
    def run() -> None:
        core = made(source)
        assert core.close()
        with pytest.raises(ValueError, match="the core is closed"):
            use(core)

    ROOT.run(run)


def test_a_closed_core_has_nothing_in_hand(source: Path) -> None:
    """These are asked when a session ends, also one that has failed to begin."""

    def run() -> None:
        core = made(source)
        assert core.close()
        core.use_device(-1)
        core.stop()
        assert core.close()
        assert (core.in_flight(), core.waiting(), core.threads()) == (0, 0, 0)

    ROOT.run(run)


def test_a_core_that_cannot_be_made_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(OSError, match=r"."):
            Core(CONFIG, -1, Rare(CONFIG))
    assert os.listdir("/proc/self/fd") == before


def test_a_thread_that_is_left_keeps_what_it_calls(source: Path) -> None:
    """It may still write a line to the log after `close`, and after the core is dropped."""
    (source / "file").write_bytes(bytes(100))

    def run() -> None:
        python = Rare(CONFIG)
        dropped = weakref.ref(python)
        core = Core(CONFIG, os.open(source, os.O_PATH | os.O_DIRECTORY), python)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        core.use_device(theirs.fileno())
        core.start()
        nodeid, body = lock_of(core)
        with (source / "file").open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            size = wire.IN_HEADER.size + len(body)
            ours.send(wire.IN_HEADER.pack(size, Opcode.SETLKW, 2, nodeid, 0, 0, 1, 0) + body)
            while not core.waiting():
                time.sleep(0.001)
            core.stop()
            assert not core.close()
            del core, python
            gc.collect()
            assert dropped() is not None

    ROOT.run(run)


def test_a_core_without_threads_drops_what_it_calls(source: Path) -> None:
    def run() -> None:
        python = Rare(CONFIG)
        dropped = weakref.ref(python)
        core = Core(CONFIG, os.open(source, os.O_PATH | os.O_DIRECTORY), python)
        count = sys.getrefcount(python)
        with serving(core):
            assert sys.getrefcount(python) == count + 1
        assert sys.getrefcount(python) == count
        del core, python
        gc.collect()
        assert dropped() is None

    ROOT.run(run)
