"""Locks of a worker that is killed at any instruction, and what the next worker finds and does."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.tools import workers
from tests.support.tools.core_locks import (
    DEADLOCK,
    READ,
    UNLOCK,
    WRITE,
    Found,
    Served,
    User,
    Waiting,
)
from tests.support.tools.host_calls import LAST_BYTE
from tests.support.tools.processes import wait_until

ALICE, BOB = 1, 2
KINDS = {"READ": READ, "WRITE": WRITE}
MANY = 20

Range = tuple[int, int, int]


class Both(NamedTuple):
    """Two open files of one owner."""

    reader: User
    writer: User


class Case(NamedTuple):
    """A request that is in hand when its worker dies, and the locks before and after it."""

    before: Callable[[Both], object]
    work: Callable[[Both], object]
    left: list[Range]  # that the owner holds in the end


def lock(kind: int, start: int = 0, end: int = LAST_BYTE) -> Callable[[Both], None]:
    return lambda both: both.writer.lock(kind, start, end)


def nothing(_both: Both) -> None:
    pass


def many(both: Both) -> None:
    for number in range(MANY):
        both.writer.lock(WRITE, 2 * number, 2 * number)


def read(both: Both) -> None:
    """Lock by the descriptor that may only read."""
    both.reader.lock(READ, 10, 19)
    both.reader.lock(READ, 30, 39)


def flush(both: Both) -> None:
    both.writer.flush()


def flock(both: Both) -> None:
    assert both.writer.flock(WRITE) == "locked"


CASES = {
    "first lock": Case(nothing, lock(WRITE, 5, 9), [(WRITE, 5, 9)]),
    "another lock": Case(lock(WRITE, 5, 9), lock(READ, 8, 20), [(WRITE, 5, 7), (READ, 8, 20)]),
    "unlock": Case(lock(WRITE), lock(UNLOCK, 5, 9), [(WRITE, 0, 4), (WRITE, 10, LAST_BYTE)]),
    "unlock all": Case(lock(WRITE), lock(UNLOCK), []),
    "many locks": Case(
        many,
        lock(WRITE, 100, 100),
        [(WRITE, byte, byte) for byte in (*range(0, 2 * MANY, 2), 100)],
    ),
    "fewer locks": Case(many, lock(UNLOCK, 4), [(WRITE, 0, 0), (WRITE, 2, 2)]),
    "lock for writing after locks for reading": Case(
        read, lock(WRITE, 10, 34), [(WRITE, 10, 34), (READ, 35, 39)]
    ),
    "close": Case(lock(WRITE, 5, 9), flush, []),
    "close with many locks": Case(many, flush, []),
    "flock": Case(nothing, flock, []),
}


def host_locks(path: Path) -> list[Range]:
    """Return the locks of open file descriptions on a file, that the host has."""
    st = path.stat()
    file = f"{os.major(st.st_dev):02x}:{os.minor(st.st_dev):02x}:{st.st_ino}"
    found = []
    with open("/proc/locks") as lines:
        for line in lines:
            fields = line.split()
            if fields[1] == "OFDLCK" and fields[5] == file:
                end = LAST_BYTE if fields[7] == "EOF" else int(fields[7])
                found.append((KINDS[fields[3]], int(fields[6]), end))
    return sorted(found, key=lambda found: found[1])


def succeed(served: Served, before: set[int]) -> None:
    """Take over from a worker that has died; *before*: the descriptors that were open before it."""
    served.take_over()
    known = {fd for _, fd, *_ in served.records()}
    assert served.recorded() == known
    for fd in workers.descriptors() - before - known:
        served.clear(fd)
        os.close(fd)


def killed(served: Served, watching: int, work: Callable[[], object], changes: int) -> bool:
    """Do *work* in a worker that is killed after *changes*; false: it has made fewer."""

    def stopping() -> None:
        served.traced = True
        work()

    with workers.traced(stopping) as pid:
        return served.step(pid, watching, changes) == changes


def in_turn(served: Served, *works: Callable[[], object]) -> None:
    """Have each done by a worker of its own, which then dies, and go on from there."""
    before = workers.descriptors()
    for work in works:
        workers.run(work)
        succeed(served, before)


@pytest.mark.parametrize("case", CASES)
def test_a_worker_may_die_at_any_instruction(served: Served, source: Path, case: str) -> None:
    """Its request is then served again, and nothing tells that it had been served before."""
    before, work, left = CASES[case]
    changes, goes_on = -1, True
    while goes_on:
        changes += 1
        open_before = workers.descriptors()
        both = Both(User(served, ALICE, os.O_RDONLY), User(served, ALICE))
        watching = os.open(source / "file", os.O_RDWR)
        opened = workers.descriptors()
        in_turn(served, functools.partial(before, both))
        goes_on = killed(served, watching, functools.partial(work, both), changes)
        succeed(served, opened)

        work(both)

        assert both.writer.held() == left
        # A listing of many locks has one twice, or not at all, while others come and go.
        wait_until(lambda: host_locks(source / "file") == left)
        both.reader.flush()
        wait_until(lambda: host_locks(source / "file") == [])
        both.reader.release()
        both.writer.release()
        os.close(watching)
        assert served.records() == []
        assert workers.descriptors() == open_before
    assert changes


def test_an_owner_goes_on_with_the_locks_of_before(served: Served, alice: User, bob: User) -> None:
    in_turn(served, lambda: alice.lock(WRITE, 0, 9), lambda: bob.lock(READ, 10, 19))

    assert served.used()
    assert bob.seen() == Found(WRITE, 0, 9, alice.pid)
    bob.denied(READ, 9, 9)
    alice.denied(WRITE, 10, 10)
    alice.lock(UNLOCK, 5, 9)
    assert alice.held() == [(WRITE, 0, 4)]
    bob.lock(READ, 9, 9)
    assert bob.held() == [(READ, 9, 19)]


def test_a_lock_that_is_served_again_has_the_kernel_drop_its_pages(
    served: Served, alice: User, bob: User
) -> None:
    """The worker before may have died just before it told the kernel."""
    in_turn(served, lambda: bob.lock(WRITE, 0, 9), lambda: alice.lock(WRITE, 10, 19))
    bob.lock(UNLOCK)
    served.told()

    served.again = True
    alice.lock(WRITE, 10, 19)
    assert served.told() == 1
    assert alice.flock(WRITE) == "locked"
    assert served.told() == 1
    alice.lock(UNLOCK)
    assert served.told() == 0


def test_release_ends_the_locks_of_a_file_without_flush(
    served: Served, alice: User, bob: User
) -> None:
    """As one that was opened with FOPEN_NOFLUSH, before the first lock."""
    in_turn(served, lambda: alice.lock(WRITE))
    bob.denied(WRITE)

    alice.release()

    bob.lock(WRITE)


def test_an_owner_may_have_locked_through_many_open_files(served: Served, bob: User) -> None:
    files = [User(served, ALICE) for _ in range(MANY)]

    def lock_by_each() -> None:
        for byte, user in enumerate(files):
            user.lock(WRITE, byte, byte)

    in_turn(served, lock_by_each)
    assert len(served.records()) == 1

    files[-1].release()

    bob.lock(WRITE)


def test_waits_go_on_with_their_requests(served: Served, alice: User, bob: User) -> None:
    """And two owners that wait for one another are found, also if one waited before."""

    def work() -> None:
        alice.lock(WRITE, 0, 9)
        bob.lock(WRITE, 10, 19)
        wait(bob)

    in_turn(served, work)

    waiting = wait(bob)
    alice.denied(WRITE, 10, 10)
    assert alice.wait(WRITE, 10, 10).ended() == DEADLOCK
    alice.lock(UNLOCK)

    assert waiting.ended() == "locked"
    assert bob.held() == [(WRITE, 0, 19)]


def wait(user: User, unique: int = 0) -> Waiting:
    waiting = user.wait(WRITE, 0, 9, unique)
    waiting.blocked()
    return waiting


def test_an_interrupt_that_was_served_before_is_remembered(
    served: Served, alice: User, bob: User
) -> None:
    """The wait may have been over by then, and not answered, or not begun."""

    def work() -> None:
        alice.lock(WRITE)
        waiting = wait(bob, 700)
        waiting.interrupt()
        assert waiting.ended() == "EINTR"
        served.interrupt(702)

    in_turn(served, work)

    assert bob.wait(WRITE, unique=700).ended() == "EINTR"
    assert bob.wait(WRITE, unique=702).ended() == "EINTR"
    waiting = wait(bob, 704)
    waiting.interrupt()
    assert waiting.ended() == "EINTR"
