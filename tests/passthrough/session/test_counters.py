"""Requests are counted by operation, and errors by errno: requests as bytes."""

from collections.abc import Iterator

import pytest

from passthrough.options.choices import CachePolicy, SessionKind
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import Connect, Kernel, message, text
from tests.support.tools import wire
from tests.support.tools.abi import ROOT_ID
from tests.support.tools.counting import counting, found, numbers
from tests.support.tools.options import effective

UNCACHED = effective(cache=CachePolicy.NEVER, session=SessionKind.KERNEL, posix_acl=False)
READONLY = effective(readonly=True, session=SessionKind.KERNEL, posix_acl=False)
GETATTR = wire.GETATTR_IN.pack(0, 0)
MALFORMED = b"short"


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
