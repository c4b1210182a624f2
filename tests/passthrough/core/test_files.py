"""Open files, where bytes of requests cannot show it: ids of passthrough, and threads at once."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from passthrough.options.choices import SessionKind
from passthrough.session.abi import Opcode
from passthrough.session.kernel import Served
from passthrough.worker import fuse_mount
from tests.passthrough.core.probe_files import Probe
from tests.passthrough.core.probe_journal import close_backing_ids, lose_backing
from tests.support.fakes.kernel import entry, text
from tests.support.tools import abi, wire
from tests.support.tools.abi import DEV_IOC_BACKING_CLOSE, WRITE_KILL_SUIDGID
from tests.support.tools.bodies import READ
from tests.support.tools.options import effective

CONTENT = b"content of the file"
ROOT_ALONE = (1, 0)


class Silent:
    """A core's Python that has nothing to do."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(CONTENT)
    return source


@pytest.fixture
def probe(source: Path) -> Iterator[Probe]:
    """A volume that must hold nothing at the end but its root."""
    probe = Probe(os.fsencode(source), Silent())
    yield probe
    assert probe.close() == ROOT_ALONE


@pytest.fixture
def served(source: Path) -> Iterator[Served]:
    """A volume that no device has yet."""
    served = Served(
        effective(session=SessionKind.KERNEL), os.open(source, os.O_PATH | os.O_DIRECTORY)
    )
    yield served
    served.close()


@pytest.fixture
def device(tmp_path: Path, served: Served) -> Iterator[int]:
    """A descriptor of /dev/fuse that has agreed on passthrough with *served*."""
    (tmp_path / "mount").mkdir()
    fd = fuse_mount.mount(tmp_path / "mount", served.config)
    served.core.use_device(fd)
    alone(served.core.serve_one)
    yield fd
    served.core.use_device(-1)
    fuse_mount.unmount(tmp_path / "mount", abort=True)
    os.close(fd)


_SERVING = ThreadPoolExecutor(1)


def alone(function: Callable[[], object]) -> object:
    """Call a function in the one thread from which serving may take capabilities."""
    return _SERVING.submit(function).result()


def at_once(calls: Sequence[Callable[[], object]]) -> list[object]:
    """Return the results of *calls*, each made by a thread of its own."""
    results: list[object] = [None] * len(calls)

    def call(index: int) -> None:
        results[index] = calls[index]()

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def backing_ids(device: int, most: int) -> list[int]:
    """Return the ids up to *most* that the kernel has, and take them from it."""
    found = []
    for number in range(1, most + 1):
        with contextlib.suppress(FileNotFoundError):
            fcntl.ioctl(device, DEV_IOC_BACKING_CLOSE, struct.pack("=I", number))
            found.append(number)
    return found


def opened(source: Path) -> int:
    return os.open(source / "file", os.O_RDONLY)


def test_first_opens_at_once_agree_on_an_id_and_leave_none(source: Path, device: int) -> None:
    """Each thread makes an id, without a lock over the ioctl(2); the slower one closes its own."""
    probe = Probe(os.fsencode(source), Silent(), device)
    nodeid = probe.find(b"file")
    rounds, times, threads = 6, 300, 2
    opening = [lambda: probe.open_often(nodeid, times, threads)] * threads

    for _ in range(rounds):  # in some, the two threads share a processor
        assert at_once(opening) == [times] * threads

    probe.forget(nodeid)
    assert probe.close() == ROOT_ALONE
    assert backing_ids(device, rounds * times * threads + 1) == []


def test_trying_whether_files_can_pass_through_leaves_no_id(served: Served, device: int) -> None:
    before = len(os.listdir("/proc/self/fd"))

    assert alone(served.core.try_passthrough) == 0

    assert len(os.listdir("/proc/self/fd")) == before
    assert backing_ids(device, 5) == []


def test_why_no_file_can_pass_through(served: Served) -> None:
    assert alone(served.core.try_passthrough) == errno.ENODEV
    ours, theirs = socket.socketpair()
    with ours, theirs:
        served.core.use_device(ours.fileno())
        assert alone(served.core.try_passthrough) == errno.ENOTTY
        served.core.use_device(-1)


def test_files_without_open_are_read_while_others_forget_them(probe: Probe) -> None:
    """A thread that closes such a file never closes the one of a later lookup."""
    before = len(os.listdir("/proc/self/fd"))
    times = 5_000

    assert at_once([lambda: probe.read_often(b"file", CONTENT, times)] * 4) == [times] * 4

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_write_asks_a_server_for_the_mode_alone_unless_there_are_bits(
    source: Path, probe: Probe
) -> None:
    file = source / "file"
    nodeid = probe.find(b"file")
    handle = probe.add(nodeid, os.open(file, os.O_RDWR), writable=True)
    for flags, before, after in (
        (0, 0o755, 0o755),
        (0, 0o6755, 0o6755),
        (WRITE_KILL_SUIDGID, 0o6755, 0o755),
        (WRITE_KILL_SUIDGID, 0o644, 0o644),
    ):
        file.chmod(before)
        at_once([partial(probe.write, handle, b"new", flags)])
        assert stat.S_IMODE(file.stat().st_mode) == after

    assert file.read_bytes() == b"new" + CONTENT[3:]
    probe.release(handle)
    probe.forget(nodeid)


def test_bits_that_come_while_a_file_passes_through_are_noted_until_it_is_closed(
    source: Path, probe: Probe
) -> None:
    nodeid = probe.find(b"file")
    probe.note_privileges(nodeid)  # it is not open
    first = probe.add(nodeid, opened(source), backing_id=7)
    assert probe.passes(nodeid)
    assert not probe.may_have_lost_privileges(nodeid)

    probe.note_privileges(nodeid)
    second = probe.add(nodeid, opened(source), backing_id=7)
    probe.release(first)
    assert probe.may_have_lost_privileges(nodeid)
    probe.release(second)
    assert not probe.may_have_lost_privileges(nodeid)
    third = probe.add(nodeid, opened(source), backing_id=8)
    assert not probe.may_have_lost_privileges(nodeid)
    probe.release(third)
    assert not probe.passes(nodeid)
    probe.forget(nodeid)


def test_a_file_of_callers_without_an_open_cannot_be_released(source: Path) -> None:
    """The kernel knows no such fh. It would name another file soon, which FORGET would close."""
    config = effective(session=SessionKind.KERNEL)
    served = Served(config, os.open(source, os.O_PATH | os.O_DIRECTORY))
    ask = served.core.call

    def run() -> None:
        found = entry(ask(Opcode.LOOKUP, abi.ROOT_ID, 0, 0, 1, text(b"file")))
        nodeid, reading = found["nodeid"], READ.pack(0, 0, 100, 0, 0, 0)
        assert ask(Opcode.READ, nodeid, 0, 0, 1, reading) == CONTENT
        with pytest.raises(OSError, match="Bad file descriptor"):
            ask(Opcode.RELEASE, nodeid, 0, 0, 1, wire.RELEASE_IN.pack(1, 0, 0, 0))
        assert served.core.files == 1
        assert ask(Opcode.READ, nodeid, 0, 0, 1, reading) == CONTENT
        ask(Opcode.FORGET, nodeid, 0, 0, 1, wire.FORGET_IN.pack(1))

    with ThreadPoolExecutor(1) as executor:  # serving may take capabilities from its thread
        executor.submit(run).result()
    assert (served.core.files, served.core.inodes) == (0, 1)
    served.close()


def test_bits_of_a_file_that_the_worker_serves_are_not_noted(source: Path, probe: Probe) -> None:
    nodeid = probe.find(b"file")
    handle = probe.add(nodeid, opened(source))
    probe.note_privileges(nodeid)

    assert not probe.passes(nodeid)
    assert not probe.may_have_lost_privileges(nodeid)
    probe.release(handle)
    probe.forget(nodeid)


def test_one_open_for_writing_among_others_counts(source: Path, probe: Probe) -> None:
    (source / "other").touch()
    nodeid, other = probe.find(b"file"), probe.find(b"other")
    assert not probe.open_for_writing(nodeid)
    reading = [probe.add(nodeid, opened(source)) for _ in range(3)]
    writing = probe.add(nodeid, opened(source), writable=True)
    elsewhere = probe.add(other, opened(source))

    assert probe.open_for_writing(nodeid)
    assert not probe.open_for_writing(other)
    assert not probe.open_for_writing(other + (1 << 32))
    probe.release(writing)
    assert not probe.open_for_writing(nodeid)

    for handle in (*reading, elsewhere):
        probe.release(handle)
    with pytest.raises(OSError, match="Bad file descriptor") as bad:
        probe.release(writing)
    assert bad.value.errno == errno.EBADF
    probe.forget(nodeid)
    probe.forget(other)


def test_ids_that_a_dead_worker_has_lost_are_closed(served: Served, device: int) -> None:
    """One that was noted, and those of threads that had not come back from the call."""
    core = served.core
    noted: list[int] = []

    def run() -> None:
        nodeid = entry(core.call(Opcode.LOOKUP, abi.ROOT_ID, 0, 0, 1, text(b"file")))["nodeid"]
        opening = wire.OPEN_IN.pack(os.O_RDONLY, 0)
        noted.append(wire.OPEN_OUT.unpack(core.call(Opcode.OPEN, nodeid, 0, 0, 1, opening))[2])
        above = lose_backing(core)
        lose_backing(core)
        close_backing_ids(core, noted[0], above)

    alone(run)

    assert noted[0] > 0
    assert backing_ids(device, noted[0] + 10) == noted
