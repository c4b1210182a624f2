"""The session's answers to malformed requests, to INIT and to opens.

The requests and answers are bytes, for each implementation.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from passthrough.core.face import opcodes
from passthrough.options.choices import CachePolicy, Locks, Passthrough, SessionKind
from passthrough.session import negotiation
from passthrough.session.abi import Opcode
from passthrough.session.rare import MAX_WRITE
from tests.support.fakes.kernel import EVERYTHING, READAHEAD, Connect, Kernel, message, text
from tests.support.tools import abi, wire
from tests.support.tools.abi import Notification
from tests.support.tools.bodies import BODIES, WITHOUT_ANSWER
from tests.support.tools.disks import DISKS, LOWER, SUBMOUNTS
from tests.support.tools.options import effective

KERNEL = effective(session=SessionKind.KERNEL)


@pytest.mark.parametrize("name", sorted(set(BODIES) - WITHOUT_ANSWER))
def test_a_request_that_is_cut_short_is_eio(kernel: Kernel, name: str) -> None:
    """It may be cut in its structure, in its name, or in its data."""
    for length in range(len(BODIES[name])):
        assert kernel.ask(Opcode[name], BODIES[name][:length]).error == errno.EIO


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in sorted(set(BODIES) - WITHOUT_ANSWER)
        if BODIES[name][-1:] in {b"\0", b"a", b"e"}
    ],
)
def test_text_and_data_must_end_with_the_request(kernel: Kernel, name: str) -> None:
    body = BODIES[name]
    if Opcode[name] in wire.FIXED and wire.FIXED[Opcode[name]].size == len(body):
        return  # neither text nor data: a later kernel may append fields

    assert kernel.ask(Opcode[name], body + b"more").error == errno.EIO


def test_a_wrong_length_in_the_header_is_eio(kernel: Kernel) -> None:
    good = message(Opcode.LOOKUP, text(b"name"))
    for wrong in (0, 39, 40, len(good) - 1, len(good) + 1, 2**32 - 1):
        (reply,) = kernel.send(wrong.to_bytes(4, "little") + good[4:])
        assert reply.error == errno.EIO


@pytest.mark.parametrize("units", [1, 2, 100, 0xFFFF])
def test_extensions_that_are_missing_are_eio(kernel: Kernel, units: int) -> None:
    (reply,) = kernel.send(message(Opcode.LOOKUP, text(b"n"), extensions=units))

    assert reply.error == errno.EIO


def test_extensions_are_no_part_of_a_name(kernel: Kernel, source: Path) -> None:
    (source / "name").touch()
    groups = wire.EXTENSION.pack(16, abi.EXT_GROUPS) + wire.GROUPS.pack(1) * 2

    (reply,) = kernel.send(message(Opcode.UNLINK, text(b"name") + groups, extensions=2))

    assert reply.error == 0
    assert list(source.iterdir()) == []


@pytest.mark.logs("no header")
@pytest.mark.parametrize("length", [1, 39])
def test_a_request_without_a_whole_header_has_no_answer(kernel: Kernel, length: int) -> None:
    assert kernel.send(b"\x01" * length) == []


@pytest.mark.logs("bytes of opcode|no .* rows")
def test_a_forget_that_is_cut_short_is_logged(kernel: Kernel) -> None:
    kernel.tell(Opcode.BATCH_FORGET, wire.BATCH_FORGET_IN.pack(2) + wire.FORGET_ONE.pack(2, 1))
    kernel.tell(Opcode.FORGET, b"1234")


class _Quiet(logging.Handler):
    """A log handler that keeps only tracebacks."""

    def __init__(self) -> None:
        super().__init__()
        self.mistakes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.mistakes.append(logging.Formatter().format(record))


@pytest.fixture
def fuzzed(connect: Connect) -> Iterator[tuple[Kernel, _Quiet]]:
    """A kernel that sends nonsense, and the log of the session."""
    logger, quiet = logging.getLogger("passthrough"), _Quiet()
    logger.addHandler(quiet)
    logger.propagate = False
    yield connect(), quiet
    logger.propagate = True
    logger.removeHandler(quiet)


# One session takes all the nonsense of a test, as in service.
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
numbers = st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1, 2**63, 2**64 - 1]) | st.integers(
    0, 2**64 - 1
)
codes = st.sampled_from(sorted(opcodes())) | st.integers(0, 2**32 - 1)


@settings(SHARED, max_examples=400)
@given(raw=st.binary(min_size=1, max_size=300))
def test_arbitrary_bytes_harm_nothing(fuzzed: tuple[Kernel, _Quiet], raw: bytes) -> None:
    survives(fuzzed, raw)


@settings(SHARED, max_examples=600)
@given(opcode=codes, nodeid=numbers, body=st.binary(max_size=200), extensions=st.integers(0, 30))
def test_arbitrary_bodies_harm_nothing(
    fuzzed: tuple[Kernel, _Quiet], opcode: int, nodeid: int, body: bytes, extensions: int
) -> None:
    survives(fuzzed, message(opcode, body, nodeid, 2, extensions))


@settings(SHARED, max_examples=600)
@given(data=st.data(), name=st.sampled_from(sorted(BODIES)), nodeid=numbers)
def test_good_requests_with_some_bytes_changed_harm_nothing(
    fuzzed: tuple[Kernel, _Quiet], data: st.DataObject, name: str, nodeid: int
) -> None:
    raw = bytearray(message(Opcode[name], BODIES[name], nodeid))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(raw)))
    survives(fuzzed, bytes(raw[:cut] if data.draw(st.booleans()) else raw))


def survives(fuzzed: tuple[Kernel, _Quiet], raw: bytes) -> None:
    """Expect at most one answer, no traceback in the log, and an answer to the next request."""
    kernel, quiet = fuzzed
    replies = kernel.send(raw)

    assert len(replies) <= 1
    assert quiet.mistakes == []
    assert kernel.ask(Opcode.GETATTR, BODIES["GETATTR"]).error == 0


def test_an_open_under_metadata_drops_the_attributes(source: Path, connect: Connect) -> None:
    (source / "file").touch()
    kernel = connect(effective(cache=CachePolicy.METADATA, session=SessionKind.KERNEL))
    nodeid = kernel.lookup(b"file")

    kernel.open(nodeid)

    dropped = wire.NOTIFY_INVAL_INODE_OUT.pack(nodeid, -1, 0)
    assert kernel.notifications == [(Notification.INVAL_INODE, dropped)]


@pytest.mark.parametrize(
    ("cache", "flags", "allowed"),
    [
        (CachePolicy.AUTO, os.O_RDONLY, abi.FOPEN_NOFLUSH),
        (CachePolicy.AUTO, os.O_RDWR, 0),
        (CachePolicy.ALWAYS, os.O_WRONLY, abi.FOPEN_KEEP_CACHE),
        (CachePolicy.ALWAYS, os.O_RDONLY, abi.FOPEN_KEEP_CACHE | abi.FOPEN_NOFLUSH),
    ],
)
def test_flags_of_an_open_file(
    source: Path, connect: Connect, cache: CachePolicy, flags: int, allowed: int
) -> None:
    (source / "file").touch()
    kernel = connect(
        effective(cache=cache, session=SessionKind.KERNEL, passthrough=Passthrough.OFF)
    )
    nodeid = kernel.lookup(b"file")

    reply = kernel.ask(Opcode.OPEN, wire.OPEN_IN.pack(flags, 0), nodeid)
    assert wire.OPEN_OUT.unpack(reply.body) == (1, allowed, 0)

    # Locks end when a file is closed, which FLUSH reports: from the first lock on it is needed.
    lock = wire.LK_IN.pack(kernel.open(nodeid), 7, 0, 9, fcntl.F_WRLCK, 5, 0)
    assert kernel.ask(Opcode.SETLK, lock, nodeid).error == 0
    reply = kernel.ask(Opcode.OPEN, wire.OPEN_IN.pack(flags, 0), nodeid)
    assert wire.OPEN_OUT.unpack(reply.body) == (3, allowed & ~abi.FOPEN_NOFLUSH, 0)


@pytest.mark.parametrize(
    ("locks", "flags", "spared"),
    [
        (Locks.LOCAL, os.O_RDONLY, True),
        (Locks.LOCAL, os.O_WRONLY, True),
        (Locks.LOCAL, os.O_RDWR, False),  # the kernel writes stores into a shared map to the host
        (Locks.HOST, os.O_WRONLY, False),
    ],
)
def test_no_flush_comes_of_files_without_locks_and_maps_on_a_disk(
    source: Path, connect: Connect, locks: Locks, flags: int, spared: bool
) -> None:
    (source / "file").touch()
    kernel = connect(effective(session=SessionKind.KERNEL, locks=locks))
    body = wire.CREATE_IN.pack(flags | os.O_CREAT, 0o600, 0, 0) + text(b"new")
    opened = kernel.ask(Opcode.OPEN, wire.OPEN_IN.pack(flags, 0), kernel.lookup(b"file")).body
    created = kernel.ask(Opcode.CREATE, body).body[wire.ENTRY_OUT.size :]

    for reply in (opened, created):
        assert wire.OPEN_OUT.unpack(reply)[1] & abi.FOPEN_NOFLUSH == abi.FOPEN_NOFLUSH * spared


@pytest.fixture(params=["overlay", "submounts"])
def other_file(request: pytest.FixtureRequest, source: Path) -> Iterator[tuple[bytes, ...]]:
    """The names down to a file on overlayfs, or on a file system that is mounted below."""
    with DISKS[request.param](source):
        top = (os.fsencode(SUBMOUNTS[0]),) if request.param == "submounts" else ()
        yield (*top, os.fsencode(LOWER), b"0")


def test_a_flush_comes_where_the_host_may_report_on_close(
    other_file: tuple[bytes, ...], connect: Connect
) -> None:
    """Overlayfs passes close(2) on. The type of a file system mounted below is not known."""
    kernel = connect(effective(session=SessionKind.KERNEL, locks=Locks.LOCAL))

    reply = kernel.ask(Opcode.OPEN, wire.OPEN_IN.pack(os.O_WRONLY, 0), kernel.lookup(*other_file))

    handle, flags, _ = wire.OPEN_OUT.unpack(reply.body)
    assert not flags & abi.FOPEN_NOFLUSH
    kernel.release(handle)


@pytest.mark.parametrize(
    ("cache", "allowed"),
    [
        (CachePolicy.AUTO, 0),
        (CachePolicy.ALWAYS, abi.FOPEN_KEEP_CACHE | abi.FOPEN_CACHE_DIR),
    ],
)
def test_flags_of_an_open_directory(connect: Connect, cache: CachePolicy, allowed: int) -> None:
    kernel = connect(effective(cache=cache, session=SessionKind.KERNEL))

    reply = kernel.ask(Opcode.OPENDIR, BODIES["OPENDIR"])

    assert wire.OPEN_OUT.unpack(reply.body) == (1, allowed, 0)


def test_init_is_answered_with_the_features_that_both_sides_want(connect: Connect) -> None:
    offer = negotiation.Offer(abi.MAJOR, abi.MINOR, READAHEAD, EVERYTHING)
    agreed = negotiation.agree(offer, KERNEL)

    fields = wire.INIT_OUT.unpack(connect(KERNEL, EVERYTHING).init.body)
    major, minor, readahead, flags, background, congested, max_write, grain, pages = fields[:9]

    assert (major, minor, readahead) == (7, 45, 131_072)
    assert flags | fields[10] << 32 == agreed.flags
    assert (max_write, pages, grain) == (MAX_WRITE, MAX_WRITE // 4096, 1)
    assert background > congested > 0
    assert fields[11] == 1  # max_stack_depth


def test_a_kernel_that_is_too_old_is_refused(connect: Connect) -> None:
    assert connect(minor=39).init.error == errno.EPROTO
