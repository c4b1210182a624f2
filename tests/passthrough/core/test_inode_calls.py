"""System calls on inodes: which need no path, on which kernels, and that both forms do the same."""

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from passthrough.linux import fdpath
from passthrough.linux.kernel_features import linux_release
from passthrough.linux.privileges import filter_calls
from passthrough.options.choices import SessionKind, Squash
from passthrough.session.abi import Init, Opcode
from passthrough.session.kernel import Served
from tests.passthrough.core.probe_files import Probe
from tests.passthrough.core.probe_inode_calls import ATTRIBUTES, MODE, TIMES, using
from tests.support.fakes.kernel import EVERYTHING, Kernel, attributes, entry, text
from tests.support.tools import abi, wire
from tests.support.tools.bodies import BODIES
from tests.support.tools.implementations import CoreSession
from tests.support.tools.options import effective

FACCESSAT2 = 439  # the same number on all architectures
NEEDED = {TIMES: (5, 8), MODE: (6, 6), ATTRIBUTES: (6, 13)}
EACH = [0, *NEEDED, sum(NEEDED)]
OF_TIMES = abi.FATTR_ATIME | abi.FATTR_MTIME
OF_OWNER = abi.FATTR_UID | abi.FATTR_GID
ACL = b"system.posix_acl_access"
NAMES = [b"file", b"directory", b"link", b"fifo"]


def setattr_(valid: int, size: int = 0, mode: int = 0) -> bytes:
    return wire.SETATTR_IN.pack(valid, 0, size, 0, 5, 5, 0, 6, 6, 0, mode, 7, 8)


def setxattr(name: bytes, value: bytes, flags: int = 0) -> bytes:
    return wire.SETXATTR_IN.pack(len(value), 0, flags) + text(name) + value


@pytest.fixture
def start(source: Path) -> Iterator[Callable[[], Kernel]]:
    """Start a session over a directory with a file of each kind."""
    (source / "file").write_bytes(b"content")
    (source / "directory").mkdir()
    (source / "link").symlink_to("file")
    os.mkfifo(source / "fifo")
    for name in ("file", "directory"):
        os.setxattr(source / name, "user.a", name.encode())
    sessions: list[CoreSession] = []

    def start_() -> Kernel:
        sessions.append(CoreSession(source, effective(session=SessionKind.KERNEL)))
        return Kernel(sessions[-1], EVERYTHING & ~Init.PASSTHROUGH)

    yield start_
    for session in sessions:
        session.close()


@pytest.fixture
def pathless(start: Callable[[], Kernel], monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A session that knows no path to its descriptors."""
    with monkeypatch.context() as patched:
        patched.setattr(fdpath, "of", lambda fd: b"/absent/%d" % fd)
        return start()


def needs(call: int) -> pytest.MarkDecorator:
    wanted = NEEDED[call]
    release = ".".join(map(str, wanted))
    return pytest.mark.skipif(linux_release() < wanted, reason=f"needs Linux {release}")


def test_the_calls_of_this_kernel_are_found() -> None:
    expected = sum(call for call, since in NEEDED.items() if linux_release() >= since)
    with using(0) as found:
        assert found == expected


@pytest.mark.parametrize("calls", EACH)
@pytest.mark.parametrize("name", NAMES)
def test_times_and_owner_are_those_of_the_inode_itself(
    start: Callable[[], Kernel], source: Path, name: bytes, calls: int
) -> None:
    kernel = start()
    before = (source / "file").stat()

    with using(calls):
        reply = kernel.ask(Opcode.SETATTR, setattr_(OF_TIMES | OF_OWNER), kernel.lookup(name))

    found = (source / name.decode()).lstat()
    assert reply.error == 0
    assert (found.st_atime_ns, found.st_mtime_ns) == (5_000_000_006, 5_000_000_006)
    assert (found.st_uid, found.st_gid) == (7, 8)
    shown = attributes(reply.body)
    assert (shown["atime"], shown["mtimensec"], shown["uid"], shown["gid"]) == (5, 6, 7, 8)
    if name != b"file":
        after = (source / "file").stat()
        assert (after.st_mtime_ns, after.st_uid) == (before.st_mtime_ns, before.st_uid)


@pytest.mark.parametrize("calls", EACH)
@pytest.mark.parametrize("name", NAMES)
def test_a_mode_is_that_of_the_inode_itself(
    start: Callable[[], Kernel], source: Path, name: bytes, calls: int
) -> None:
    kernel = start()
    (source / "file").chmod(0o604)

    with using(calls):
        reply = kernel.ask(
            Opcode.SETATTR, setattr_(abi.FATTR_MODE, mode=0o640), kernel.lookup(name)
        )

    if name == b"link" and reply.error:  # symlinks have no mode since Linux 6.6
        assert reply.error == errno.EOPNOTSUPP
    else:
        assert reply.error == 0
        assert stat.S_IMODE((source / name.decode()).lstat().st_mode) == 0o640
    if name != b"file":
        assert stat.S_IMODE((source / "file").stat().st_mode) == 0o604


@pytest.mark.parametrize("calls", EACH)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("opened", [False, True])
def test_attributes_are_those_of_the_inode_itself(
    start: Callable[[], Kernel], name: bytes, calls: int, opened: bool
) -> None:
    kernel = start()
    file = kernel.open(kernel.lookup(b"file")) if opened else 0
    nodeid = kernel.lookup(name)
    has_some = name in {b"file", b"directory"}
    with using(calls):
        got = kernel.ask(Opcode.GETXATTR, BODIES["GETXATTR"], nodeid)
        length = kernel.ask(Opcode.GETXATTR, wire.GETXATTR_IN.pack(0) + text(b"user.a"), nodeid)
        short = kernel.ask(Opcode.GETXATTR, wire.GETXATTR_IN.pack(1) + text(b"user.a"), nodeid)
        other = kernel.ask(Opcode.GETXATTR, wire.GETXATTR_IN.pack(9) + text(b"user.b"), nodeid)
        names = kernel.ask(Opcode.LISTXATTR, BODIES["LISTXATTR"], nodeid)
    if file:
        kernel.release(file)

    assert names.body == (b"user.a\0" if has_some else b"")
    if has_some:
        assert got.body == name
        assert wire.GETXATTR_OUT.unpack(length.body) == (len(name),)
        assert short.error == errno.ERANGE
        assert other.error == errno.ENODATA
    else:
        assert got.error


@needs(TIMES)
@needs(MODE)
@needs(ATTRIBUTES)
def test_no_path_is_needed(pathless: Kernel) -> None:
    """A walk through /proc takes longer than most of these calls."""
    directory = pathless.lookup(b"directory")
    changes = setattr_(abi.FATTR_MODE | OF_OWNER | OF_TIMES, mode=0o640)

    replies = [
        pathless.ask(Opcode.SETATTR, changes, pathless.lookup(b"file")),
        pathless.ask(Opcode.SETATTR, changes, directory),
        pathless.ask(Opcode.LISTXATTR, BODIES["LISTXATTR"], directory),
        pathless.ask(Opcode.GETXATTR, BODIES["GETXATTR"], directory),
    ]

    assert [reply.error for reply in replies] == [0] * len(replies)


def test_an_older_kernel_takes_paths(pathless: Kernel) -> None:
    """Otherwise the other tests would show nothing of the paths."""
    directory = pathless.lookup(b"directory")
    requests = [
        (Opcode.SETATTR, setattr_(OF_TIMES)),
        (Opcode.SETATTR, setattr_(abi.FATTR_MODE, mode=0o640)),
        (Opcode.GETXATTR, BODIES["GETXATTR"]),
        (Opcode.LISTXATTR, BODIES["LISTXATTR"]),
    ]

    with using(0):
        errors = [pathless.ask(opcode, body, directory).error for opcode, body in requests]

    assert errors == [errno.ENOENT] * len(requests)


# Through open files


@pytest.fixture
def probe(source: Path) -> Iterator[Probe]:
    """A volume with two files, each of which has its name in the attribute user.a."""
    for name in ("first", "second"):
        (source / name).touch()
        os.setxattr(source / name, "user.a", name.encode())
    probe = Probe(os.fsencode(source), object())
    yield probe
    probe.close()


def test_a_file_is_read_through_an_open_one(probe: Probe, source: Path) -> None:
    """Here the descriptor of the open file is one of another file."""
    first = probe.find(b"first")
    assert probe.get_often(first, b"first", 1) == 1
    fh = probe.add(first, os.open(source / "second", os.O_RDONLY))
    assert probe.get_often(first, b"second", 1) == 1
    probe.release(fh)
    assert probe.get_often(first, b"first", 1) == 1


def test_a_file_among_many_open_ones_is_read_by_its_path(probe: Probe, source: Path) -> None:
    first, second = probe.find(b"first"), probe.find(b"second")
    handles = [probe.add(second, os.open(source / "second", os.O_RDONLY)) for _ in range(70)]
    handles.append(probe.add(first, os.open(source / "first", os.O_RDONLY)))

    assert probe.get_often(first, b"first", 1) == 1
    assert probe.get_often(second, b"second", 1) == 1
    for fh in handles:
        probe.release(fh)


def test_a_descriptor_of_another_file_gives_no_attribute(probe: Probe) -> None:
    """While one thread reads by an open file, another closes it and opens another file."""
    first, second = probe.find(b"first"), probe.find(b"second")
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(probe.open_in_turn, first, second, 10_000)
        got = [probe.get_often(first, b"first", 1000)]
        while not opening.done():
            got.append(probe.get_often(first, b"first", 1000))
        opening.result()

    assert set(got) == {1000}


# ACLs


@pytest.mark.parametrize("flags", [0, abi.SETXATTR_ACL_KILL_SGID])
@pytest.mark.parametrize("bits", [0, stat.S_ISUID, stat.S_ISGID, stat.S_ISUID | stat.S_ISGID])
@pytest.mark.parametrize("group", [0, 41_002])
def test_an_acl_leaves_an_sgid_bit_unless_the_kernel_says_that_it_goes(
    start: Callable[[], Kernel], source: Path, flags: int, bits: int, group: int
) -> None:
    kernel = start()
    path = source / "file"
    os.chown(path, 41_001, group)
    path.chmod(bits | 0o754)
    entries = [(0x01, 7, -1), (0x02, 7, 7), (0x04, 5, -1), (0x10, 5, -1), (0x20, 4, -1)]
    value = struct.pack("=I", 2) + b"".join(struct.pack("=HHi", *one) for one in entries)

    reply = kernel.ask(Opcode.SETXATTR, setxattr(ACL, value, flags), kernel.lookup(b"file"))

    kept = bits & ~stat.S_ISGID if flags else bits
    assert reply.error == 0
    assert path.stat().st_mode & 0o7777 == kept | 0o754


# Rights


def without_faccessat2() -> None:
    """Have the calling thread find no faccessat2(2), for good, as before Linux 5.8."""
    load, equal, answer = 0x20, 0x15, 0x06  # linux/filter.h
    program = [
        (load, 0, 0, 0),
        (equal, 0, 1, FACCESSAT2),
        (answer, 0, 0, 0x0005_0000 | errno.ENOSYS),
        (answer, 0, 0, 0x7FFF_0000),
    ]
    filter_calls(b"".join(struct.pack("=HBBI", *line) for line in program))


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_access_is_never_that_of_the_worker(source: Path, mode: int) -> None:
    """A C library in place of the kernel decides by the worker's real ids, which may all."""
    (source / "file").touch()
    (source / "file").chmod(mode)
    options = effective(session=SessionKind.KERNEL, squash=Squash.ALL, anon_uid=7, anon_gid=7)
    served = Served(options, os.open(source, os.O_PATH | os.O_DIRECTORY))

    def access() -> bytes | int:
        found = entry(served.core.call(Opcode.LOOKUP, abi.ROOT_ID, 7, 7, 1, text(b"file")))
        body = wire.ACCESS_IN.pack(os.R_OK | os.W_OK)
        return served.core.ask(Opcode.ACCESS, found["nodeid"], 7, 7, 1, body)

    with ThreadPoolExecutor(1) as pool:
        allowed = pool.submit(access).result()
        pool.submit(without_faccessat2).result()
        refused = pool.submit(access).result()
    served.close()

    assert allowed == (b"" if mode == 0o666 else errno.EACCES)
    assert refused == errno.EACCES
