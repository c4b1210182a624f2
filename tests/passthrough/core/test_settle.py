"""Requests of workers that are killed at any instruction: what they have changed is taken back."""

import functools
import os
from collections.abc import Callable
from typing import Any

import pytest

from passthrough.session.abi import Opcode
from tests.passthrough.core.probe_journal import SIZES
from tests.passthrough.core.probe_tables import Probe
from tests.support.tools import wire
from tests.support.tools.core_tables import DIRECTORIES, ROOT, check, named, state
from tests.support.tools.stepping import step_through

FIRST, TWICE, OPENED, HANDLE = 69, 70, 71, 72
BACKING = 3
UNIQUE = 6
UNOPENED = 16  # files.pxd
Work = Callable[[Probe], object]


class Tables:
    """Tables with inodes of each kind, and the journal of a request."""

    def __init__(self) -> None:
        self.notes = os.memfd_create("journal")
        os.ftruncate(self.notes, SIZES[0])
        self.probe = Probe(
            journal=self.notes, inodes=128, opens=8, places=4, handle_bytes=8, budget=3
        )
        gone = named(self.probe.grant(FIRST, 9))[1]
        self.probe.grant(TWICE, 10)
        self.probe.grant(TWICE, 10)
        self.probe.forget(gone)
        opened = named(self.probe.grant(OPENED, 11))[1]
        self.probe.open(opened, 20, backing=BACKING)
        self.probe.grant(HANDLE, 12, handle=b"handle")
        self.probe.begin(UNIQUE)

    def __del__(self) -> None:
        os.close(self.notes)

    def set(self, tables: bytes, notes: bytes) -> None:
        """Have the memory that a worker has left."""
        os.pwrite(self.probe.fd, tables, 0)
        os.pwrite(self.notes, notes, 0)

    def succeed(self, opcode: int, nodeid: int = 0, body: bytes = b"") -> dict[str, Any]:
        """Take over; return the journal."""
        noted = self.settle(opcode, nodeid, body)
        check(self.probe)
        return noted

    def settle(self, opcode: int, nodeid: int = 0, body: bytes = b"") -> dict[str, Any]:
        noted = self.probe.settle(opcode, nodeid, body)
        self.probe.recover()
        return noted


def nodeid(probe: Probe, ino: int) -> int:
    return (probe.find(ino) or ("", 0, 0))[1]


def grant_and_return(probe: Probe) -> None:
    probe.take_back(named(probe.grant(TWICE, 30))[1])


def create_and_return(probe: Probe) -> None:
    probe.take_back(named(probe.grant(80, 30))[1])


def create(probe: Probe) -> None:
    made = named(probe.grant(80, 30))[1]
    probe.open(made, 31, backing=5)


def list_some(probe: Probe) -> None:
    for ino in (80, TWICE, 81, TWICE):
        probe.grant(ino, 30)


TAKEN_BACK: dict[str, Work] = {
    "grant new": lambda probe: probe.grant(80, 30),
    "grant known": lambda probe: probe.grant(TWICE, 30),
    "grant by handle": lambda probe: probe.grant(80, 30, handle=b"another"),
    "grant with a reused number": lambda probe: probe.grant(HANDLE, 30, handle=b"another"),
    "grant the root": lambda probe: probe.grant(2, 30),
    "grant and return": grant_and_return,
    "create and return": create_and_return,
    "list some": list_some,
    "open": lambda probe: probe.open(nodeid(probe, OPENED), 22),
    "first open": lambda probe: probe.open(nodeid(probe, TWICE), 22, backing=6),
    "open a directory": lambda probe: probe.open(ROOT, 22, table=DIRECTORIES),
    "create": create,
}


@pytest.mark.parametrize("name", TAKEN_BACK)
def test_the_changes_of_a_request_without_a_reply_are_taken_back(name: str) -> None:
    tables = Tables()
    before = state(tables.probe)
    successor = Tables()
    states = 0
    work = functools.partial(TAKEN_BACK[name], tables.probe)
    for memory in step_through([tables.probe.fd, tables.notes], work):
        successor.set(*memory)
        noted = successor.succeed(Opcode.LOOKUP)
        assert state(successor.probe) == before
        assert (noted["count"], noted["opened_fh"]) == (0, 0)
        states += 1
    assert states > 1 or name == "grant the root"


@pytest.mark.parametrize("name", ["list some", "create", "grant new"])
def test_a_successor_may_be_killed_as_well(name: str) -> None:
    tables = Tables()
    before = state(tables.probe)
    TAKEN_BACK[name](tables.probe)
    third = Tables()
    work = functools.partial(tables.settle, Opcode.LOOKUP)
    for memory in step_through([tables.probe.fd, tables.notes], work):
        third.set(*memory)
        third.succeed(Opcode.LOOKUP)
        assert state(third.probe) == before


FORGOTTEN: dict[str, tuple[int, int]] = {
    "one of two": (TWICE, 1),
    "all": (TWICE, 2),
    "more than all": (TWICE, 9),
    "of what is open": (OPENED, 1),
    "by handle": (HANDLE, 1),
}


@pytest.mark.parametrize("name", FORGOTTEN)
def test_lookups_are_forgotten_once(name: str) -> None:
    tables = Tables()
    ino, count = FORGOTTEN[name]
    target = nodeid(tables.probe, ino)
    expected = Tables()
    expected.probe.forget(target, count)
    successor = Tables()
    work = functools.partial(tables.probe.forget, target, count)
    outcomes = set()
    for memory in step_through([tables.probe.fd, tables.notes], work):
        successor.set(*memory)
        done = successor.succeed(Opcode.FORGET)["settled"]
        outcomes.add(done)
        if not done:
            successor.probe.forget(target, count)
        assert state(successor.probe) == state(expected.probe)
    assert outcomes == {0, 1}


def test_a_forget_of_many_goes_on_where_it_was() -> None:
    tables = Tables()
    targets = [nodeid(tables.probe, ino) for ino in (TWICE, HANDLE, OPENED, TWICE)]
    expected, successor = Tables(), Tables()

    def forget_from(probe: Probe, first: int) -> None:
        for target in targets[first:]:
            probe.forget(target)

    forget_from(expected.probe, 0)
    work = functools.partial(forget_from, tables.probe, 0)
    for memory in step_through([tables.probe.fd, tables.notes], work):
        successor.set(*memory)
        forget_from(successor.probe, successor.succeed(Opcode.BATCH_FORGET)["settled"])
        assert state(successor.probe) == state(expected.probe)


def test_a_refused_release_frees_its_file() -> None:
    tables, expected = Tables(), Tables()
    expected.probe.release(1)
    tables.probe.begin(UNIQUE, guilty=2)
    body = wire.RELEASE_IN.pack(1, 0, 0, 0)
    target = nodeid(tables.probe, OPENED)

    for work in (
        functools.partial(tables.probe.release, 1),
        functools.partial(tables.settle, Opcode.RELEASE, target, body),
    ):
        successor = Tables()
        for memory in step_through([tables.probe.fd, tables.notes], work):
            successor.set(*memory)
            noted = successor.succeed(Opcode.RELEASE, target, body)
            assert state(successor.probe) == state(expected.probe)
            assert noted["backing"] == BACKING


def test_a_refused_release_frees_its_directory() -> None:
    tables, expected = Tables(), Tables()
    fh, _ = tables.probe.open(ROOT, 22, table=DIRECTORIES)
    tables.probe.begin(UNIQUE, guilty=2)

    tables.succeed(Opcode.RELEASEDIR, ROOT, wire.RELEASE_IN.pack(fh, 0, 0, 0))

    assert state(tables.probe) == state(expected.probe)


def test_a_refused_release_leaves_a_file_of_which_the_kernel_knows_nothing() -> None:
    tables = Tables()
    known = nodeid(tables.probe, OPENED)
    fh, _ = tables.probe.open(known, 25, kind=UNOPENED)
    tables.probe.note(known, fh)
    tables.probe.begin(UNIQUE, guilty=2)

    tables.succeed(Opcode.RELEASE, known, wire.RELEASE_IN.pack(fh, 0, 0, 0))

    assert tables.probe.opened(fh) is not None


def test_a_refused_forget_gives_its_lookups_back() -> None:
    tables, expected = Tables(), Tables()
    target = nodeid(tables.probe, TWICE)
    expected.probe.forget(target, 2)
    tables.probe.begin(UNIQUE, guilty=2)

    tables.succeed(Opcode.FORGET, target, wire.FORGET_IN.pack(2))

    assert state(tables.probe) == state(expected.probe)


def test_a_refused_forget_of_many_gives_all_lookups_back_once() -> None:
    tables, expected = Tables(), Tables()
    targets = [nodeid(tables.probe, ino) for ino in (TWICE, HANDLE, OPENED, TWICE)]
    body = wire.BATCH_FORGET_IN.pack(len(targets))
    body += b"".join(wire.FORGET_ONE.pack(target, 1) for target in targets)
    tables.probe.begin(UNIQUE, guilty=2)
    for target in targets:
        expected.probe.forget(target)

    def forget(count: int) -> None:
        for target in targets[:count]:
            tables.probe.forget(target)

    for work in (
        functools.partial(forget, len(targets) - 1),
        functools.partial(tables.settle, Opcode.BATCH_FORGET, 0, body),
    ):
        successor = Tables()
        for memory in step_through([tables.probe.fd, tables.notes], work):
            successor.set(*memory)
            successor.succeed(Opcode.BATCH_FORGET, 0, body)
            assert state(successor.probe) == state(expected.probe)


def test_a_refused_forget_that_is_too_short_gives_nothing_back() -> None:
    tables = Tables()
    before = state(tables.probe)
    row = wire.FORGET_ONE.pack(nodeid(tables.probe, TWICE), 1)
    tables.probe.begin(UNIQUE, guilty=2)

    tables.succeed(Opcode.BATCH_FORGET, 0, wire.BATCH_FORGET_IN.pack(2) + row)

    assert state(tables.probe) == before


def test_the_id_of_a_released_file_is_noted() -> None:
    tables, successor = Tables(), Tables()
    for memory in step_through(
        [tables.probe.fd, tables.notes], functools.partial(tables.probe.release, 1)
    ):
        successor.set(*memory)
        noted = successor.succeed(Opcode.RELEASE)
        inode = successor.probe.inode(nodeid(successor.probe, OPENED)) or {}
        assert BACKING in {noted["backing"], inode["backing_id"]}


@pytest.mark.parametrize("lookups", [0, 1])
def test_a_file_that_serves_callers_without_an_open_goes_with_its_inode(lookups: int) -> None:
    """And a file that the inode does not name yet, or not any more."""
    tables = Tables()
    known = nodeid(tables.probe, OPENED)
    named_by_inode, _ = tables.probe.open(known, 25, kind=UNOPENED)
    not_named, _ = tables.probe.open(known, 26, kind=UNOPENED)
    tables.probe.note(known, named_by_inode)
    tables.probe.forget(known, 1 - lookups)
    tables.probe.note(known, named_by_inode)
    tables.probe.begin(UNIQUE + 2)
    tables.succeed(Opcode.READ)

    assert tables.probe.opened(not_named) is None
    assert (tables.probe.opened(named_by_inode) is None) == (lookups == 0)
    assert tables.probe.opened(1) is not None
