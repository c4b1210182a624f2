"""Directory streams that many threads use at once, and one whose opener is not known any more."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from passthrough.core.face import Core
from passthrough.linux import syscalls
from passthrough.options.choices import SessionKind, Squash
from passthrough.options.effective import Effective
from passthrough.session.abi import Opcode
from passthrough.session.kernel import Served
from tests.passthrough.core.probe_directories import Lister
from tests.support.fakes.kernel import entry, listed, text
from tests.support.tools import abi, wire
from tests.support.tools.bodies import BODIES, READ
from tests.support.tools.options import effective

THREADS = 4
NAMES = 300
LISTING, ROUNDS = 2, 300
Serve = Callable[[Effective], Core]


@pytest.fixture
def serve(source: Path) -> Iterator[Serve]:
    """Serve *source* with options; after the test, nothing is open any more."""
    cores: list[Core] = []
    before = len(os.listdir("/proc/self/fd"))

    def start(options: Effective) -> Core:
        served = Served(options, os.open(source, os.O_PATH | os.O_DIRECTORY))
        cores.append(served.core)
        return served.core

    yield start
    for core in cores:
        assert core.close()
    assert len(os.listdir("/proc/self/fd")) == before


_SERVING = ThreadPoolExecutor(1)


def alone(function: Callable[[], bytes]) -> bytes:
    """Call a function in the one thread from which serving may take capabilities."""
    return _SERVING.submit(function).result()


def ask(core: Core, opcode: Opcode, body: bytes, nodeid: int = abi.ROOT_ID) -> bytes:
    """Send a request of root; return the reply's body."""
    return core.call(opcode, nodeid, 0, 0, 1, body)


def test_threads_that_list_and_close_one_stream_meet_no_other_file(
    source: Path, serve: Serve
) -> None:
    """The kernel never does this; the memory of a stream must be good all the same."""
    (source / "dir").mkdir()
    for number in range(NAMES):
        (source / "dir" / f"name-{number}").touch()
    core = serve(effective(session=SessionKind.KERNEL))
    nodeid = entry(alone(lambda: ask(core, Opcode.LOOKUP, text(b"dir"))))["nodeid"]

    def hammer(seed: int) -> int:
        return Lister(core).hammer(nodeid, seed, 5000)

    with ThreadPoolExecutor(THREADS) as executor:
        wrong = list(executor.map(hammer, range(THREADS)))
    Lister(core).close(nodeid)

    assert wrong == [0] * THREADS
    assert core.directories == 0  # callers without an open hold no descriptor
    alone(lambda: ask(core, Opcode.FORGET, wire.FORGET_IN.pack(1), nodeid))
    assert (core.directories, core.inodes) == (0, 1)


def test_a_listing_takes_no_stream_from_the_kernel(source: Path, serve: Serve) -> None:
    """The number of a mount is found by a lookup, and given back; the last one ends the stream."""
    (source / "mount").mkdir()
    core = serve(effective(session=SessionKind.KERNEL))
    syscalls.mount(b"none", os.fsencode(source / "mount"), b"tmpfs", 0, b"")
    try:
        listers = [Lister(core).list] * LISTING + [Lister(core).visit]
        with ThreadPoolExecutor(len(listers)) as executor:
            for running in [executor.submit(list_, abi.ROOT_ID, ROUNDS) for list_ in listers]:
                running.result()
        assert (core.directories, core.inodes) == (0, 1)
    finally:
        syscalls.umount2(os.fsencode(source / "mount"), syscalls.MNT_DETACH)


def test_a_stream_of_callers_without_an_open_cannot_be_released(source: Path, serve: Serve) -> None:
    """The kernel knows no such fh. It would name another stream soon."""
    (source / "file").touch()
    core = serve(effective(session=SessionKind.KERNEL))

    def listing() -> bytes:
        return ask(core, Opcode.READDIR, READ.pack(0, 0, 4096, 0, 0, 0))

    first = alone(listing)
    with pytest.raises(OSError, match="Bad file descriptor"):
        alone(lambda: ask(core, Opcode.RELEASEDIR, wire.RELEASE_IN.pack(1, 0, 0, 0)))

    assert core.directories == 0  # it has no descriptor
    assert alone(listing) == first


def test_another_process_looks_names_up_as_the_squashed_opener(source: Path, serve: Serve) -> None:
    (source / "file").touch()
    core = serve(effective(session=SessionKind.KERNEL, squash=Squash.ROOT, anon_uid=4711))
    bodies: list[bytes] = []

    def work() -> bytes:
        opened = ask(core, Opcode.OPENDIR, BODIES["OPENDIR"])
        handle, _, _ = wire.OPEN_OUT.unpack(opened)
        read = READ.pack(handle, 0, 4096, 0, 0, 0)
        bodies.append(ask(core, Opcode.READDIRPLUS, read))
        Lister(core).lose_state(handle)
        bodies.append(ask(core, Opcode.READDIRPLUS, read))
        release = wire.RELEASE_IN.pack(handle, 0, 0, 0)
        return ask(core, Opcode.RELEASEDIR, release)

    assert alone(work) == b""

    first, second = (listed(body, plus=True) for body in bodies)
    assert first.keys() == second.keys() == {b".", b"..", b"file"}
    assert first[b"file"][0] == second[b"file"][0] != 0
    assert first[b"file"][1] == second[b"file"][1] == (source / "file").stat().st_ino


@pytest.mark.parametrize("plus", [False, True])
def test_a_listing_is_measured(source: Path, serve: Serve, plus: bool) -> None:
    for number in range(NAMES):
        (source / f"name-{number}").touch()
    core = serve(effective(session=SessionKind.KERNEL))

    names, nanoseconds = Lister(core).measure(abi.ROOT_ID, 2, plus)

    assert names == 2 * (NAMES + 2)
    assert nanoseconds > 0
