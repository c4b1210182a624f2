"""Requests, errors, data and opens are counted, and inodes and open files: requests as bytes."""

import os
from collections.abc import Iterator

import pytest

from passthrough.options.choices import CachePolicy, SessionKind
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import Connect, Kernel, entry, message, text
from tests.support.tools import wire
from tests.support.tools.abi import ROOT_ID
from tests.support.tools.counting import counting, found, numbers
from tests.support.tools.options import effective

UNCACHED = effective(cache=CachePolicy.NEVER, session=SessionKind.KERNEL, posix_acl=False)
READONLY = effective(readonly=True, session=SessionKind.KERNEL, posix_acl=False)
GETATTR = wire.GETATTR_IN.pack(0, 0)
UNOPENED = effective(
    cache=CachePolicy.ALWAYS, no_open=True, session=SessionKind.KERNEL, posix_acl=False
)
MALFORMED = b"short"
DATA = b"some data"
CREATE = wire.CREATE_IN.pack(os.O_RDWR, 0o644, 0, 0) + text(b"file")
ENTRY_SIZE = wire.ENTRY_OUT.size


@pytest.fixture
def counted() -> Iterator[int]:
    with counting() as fd:
        yield fd


def test_each_request_counts_once_under_its_operation(counted: int, connect: Connect) -> None:
    kernel = connect(UNCACHED)
    for _ in range(3):
        kernel.ask(Opcode.GETATTR, GETATTR)
    kernel.ask(Opcode.MKDIR, wire.MKDIR_IN.pack(0o755, 0) + text(b"dir"))
    nodeid = kernel.lookup(b"dir")
    kernel.tell(Opcode.FORGET, wire.FORGET_IN.pack(2), nodeid)

    expected = {"INIT": 1, "GETATTR": 3, "MKDIR": 1, "LOOKUP": 1, "FORGET": 1}
    assert numbers(counted) == expected
    assert found(counted).errors == {}


def test_an_answer_with_an_error_counts_under_its_errno(counted: int, connect: Connect) -> None:
    kernel = connect(UNCACHED)
    kernel.ask(Opcode.LOOKUP, text(b"absent"))
    kernel.ask(Opcode.LOOKUP, text(b"absent"))
    kernel.ask(4096)
    kernel.ask(Opcode.GETATTR, MALFORMED)

    assert numbers(counted) == {"INIT": 1, "LOOKUP": 2, "0": 1, "GETATTR": 1}
    assert found(counted).errors == {"ENOENT": 2, "ENOSYS": 1, "EIO": 1}


def test_a_refused_change_counts(counted: int, connect: Connect) -> None:
    connect(READONLY).ask(Opcode.MKDIR, wire.MKDIR_IN.pack(0o755, 0) + text(b"dir"))

    assert numbers(counted)["MKDIR"] == 1
    assert found(counted).errors == {"EROFS": 1}


@pytest.mark.logs("forget: the bytes of opcode 2 make no request")
def test_a_malformed_request_without_an_answer_counts(counted: int, kernel: Kernel) -> None:
    kernel.send(message(Opcode.FORGET, MALFORMED, ROOT_ID))

    assert numbers(counted)["FORGET"] == 1
    assert found(counted).errors == {"EIO": 1}


def test_a_caller_that_has_its_answer_finds_it_counted(counted: int, kernel: Kernel) -> None:
    for number in range(1, 50):
        kernel.ask(Opcode.STATFS)
        assert numbers(counted)["STATFS"] == number


def create(kernel: Kernel) -> tuple[int, int]:
    """Create a file; return its nodeid and its fh."""
    body = kernel.ask(Opcode.CREATE, CREATE).body
    return entry(body)["nodeid"], int(wire.OPEN_OUT.unpack_from(body, ENTRY_SIZE)[0])


def held(fd: int) -> tuple[int, int, int]:
    """Return the numbers of inodes, open files and open directories now."""
    present = found(fd)
    return present.inodes, present.open_files, present.open_directories


def test_data_that_the_worker_moves_counts(counted: int, connect: Connect) -> None:
    kernel = connect(UNCACHED)
    nodeid, handle = create(kernel)
    kernel.ask(Opcode.WRITE, wire.WRITE_IN.pack(handle, 0, len(DATA), 0, 0, 0) + DATA, nodeid)
    assert (found(counted).bytes_written, found(counted).bytes_read) == (len(DATA), 0)

    read = kernel.ask(Opcode.READ, wire.READ_IN.pack(handle, 5, 4096, 0, 0, 0), nodeid)
    assert read.body == DATA[5:]
    assert (found(counted).bytes_written, found(counted).bytes_read) == (len(DATA), len(DATA) - 5)

    refused = wire.READ_IN.pack(handle + 1, 0, 4096, 0, 0, 0)
    assert kernel.ask(Opcode.READ, refused, nodeid).error
    assert found(counted).bytes_read == len(DATA) - 5


def test_inodes_and_open_files_are_those_of_the_present(counted: int, connect: Connect) -> None:
    kernel = connect(UNCACHED)
    assert held(counted) == (1, 0, 0)
    nodeid, created = create(kernel)
    opened = kernel.open(nodeid)
    kernel.ask(Opcode.MKDIR, wire.MKDIR_IN.pack(0o755, 0) + text(b"dir"))
    (stream,) = wire.OPEN_OUT.unpack(kernel.ask(Opcode.OPENDIR, wire.OPEN_IN.pack(0, 0)).body)[:1]
    assert held(counted) == (3, 2, 1)

    kernel.release(created)
    for each in kernel.granted:
        kernel.tell(Opcode.FORGET, wire.FORGET_IN.pack(1), each)
    assert held(counted) == (2, 1, 1)

    kernel.release(opened)
    kernel.ask(Opcode.RELEASEDIR, wire.RELEASE_IN.pack(stream, 0, 0, 0))
    assert held(counted) == (1, 0, 0)
    present = found(counted)
    assert (present.opens, present.passing_opens) == (2, 0)


def test_an_open_that_fails_does_not_count(counted: int, connect: Connect) -> None:
    kernel = connect(UNCACHED)
    assert kernel.ask(Opcode.OPEN, wire.OPEN_IN.pack(0, 0)).error

    assert (found(counted).opens, found(counted).passing_opens) == (0, 0)


def test_without_open_no_open_counts(counted: int, connect: Connect) -> None:
    """The worker opens a file for all callers, by the first request for its data."""
    kernel = connect(UNOPENED)
    nodeid, handle = create(kernel)
    assert (handle, held(counted), found(counted).opens) == (0, (2, 0, 0), 0)

    kernel.ask(Opcode.READ, wire.READ_IN.pack(0, 0, 4096, 0, 0, 0), nodeid)
    assert (held(counted), found(counted).opens) == ((2, 1, 0), 0)
    kernel.forget_all()
    assert held(counted) == (1, 0, 0)
