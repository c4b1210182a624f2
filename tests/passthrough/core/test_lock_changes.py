"""Locks tell the kernel that others have changed a file, and are tried again."""

import fcntl
import os
from pathlib import Path

import pytest

from tests.passthrough.core.probe_locks import STATES
from tests.support.tools.callers import ROOT
from tests.support.tools.core_locks import READ, UNLOCK, WRITE, Served, User
from tests.support.tools.pids import threads_limited

ALICE = 1


def test_a_lock_tells_the_kernel_that_others_have_changed_the_file(
    served: Served, source: Path, alice: User, bob: User
) -> None:
    """The pages in the kernel's cache may be older than the lock."""
    alice.lock(WRITE)  # the state before is unknown
    assert served.told() == 1
    os.pwrite(alice.fd, b"mine", 0)
    alice.lock(UNLOCK)
    bob.lock(WRITE)
    assert served.told() == 0
    os.pwrite(bob.fd, b"ours", 0)
    bob.close()
    alice.flock(WRITE)
    alice.flock(UNLOCK)
    assert served.told() == 0

    with open(source / "file", "r+b", buffering=0) as host:
        host.write(b"theirs")

    alice.flock(READ)
    assert served.told() == 1
    alice.lock(READ)
    assert served.told() == 0


def test_a_wait_tells_of_changes(served: Served, source: Path, alice: User, bob: User) -> None:
    bob.lock(WRITE)
    waiting = alice.wait(WRITE)
    waiting.blocked()
    served.told()
    bob.lock(UNLOCK)
    assert waiting.ended() == "locked"
    assert served.told() == 0
    alice.flush()

    with open(source / "file", "r+b", buffering=0) as host:
        fcntl.lockf(host, fcntl.LOCK_EX)
        waiting = alice.wait(WRITE)
        waiting.blocked()
        host.write(b"theirs")
    assert waiting.ended() == "locked"
    assert served.told() == 1


def test_a_lock_of_bytes_that_the_owner_holds_is_no_news(
    served: Served, alice: User, bob: User
) -> None:
    """SQLite writes to its file, goes from a lock for writing to one for reading, and unlocks."""
    alice.lock(READ, 0, 9)
    served.told()
    alice.lock(WRITE, 0, 9)
    os.pwrite(alice.fd, b"mine", 0)
    alice.lock(READ, 0, 9)
    assert served.told() == 0
    alice.lock(UNLOCK, 0, 4)  # which tells what the file is like now
    bob.lock(WRITE, 0, 4)
    alice.lock(UNLOCK)
    assert served.told() == 0


def test_a_lock_of_more_bytes_than_the_owner_holds_tells_of_changes(
    served: Served, source: Path, alice: User
) -> None:
    alice.lock(READ, 0, 9)
    served.told()
    with open(source / "file", "r+b", buffering=0) as host:
        host.write(b"theirs")
    alice.lock(READ, 0, 10)
    assert served.told() == 1


def test_an_unlock_by_a_reader_hides_no_change(served: Served, source: Path, alice: User) -> None:
    alice.lock(READ, 0, 9)
    served.told()
    with open(source / "file", "r+b", buffering=0) as host:
        host.write(b"theirs")
    alice.lock(UNLOCK)
    alice.lock(READ, 0, 9)
    assert served.told() == 1


def test_states_of_few_files_are_known(served: Served, source: Path) -> None:
    for number in range(STATES + 10):
        path = source / f"{number}"
        path.touch()
        user = User(served, ALICE, path=path)
        user.flock(READ)
        user.release()
    assert served.states() == STATES
    assert served.told() == STATES + 10
    last = User(served, ALICE, path=path)
    last.flock(READ)
    assert served.told() == 0
    first = User(served, ALICE, path=source / "0")
    first.flock(READ)
    assert served.told() == 1
    assert served.states() == STATES


def test_the_kernel_is_told_nothing_while_it_collects_writes(source: Path) -> None:
    (source / "file").touch()
    volume = Served(source / "file", writeback=True)
    user = User(volume, ALICE)
    user.lock(WRITE)
    assert volume.told() == 0
    volume.end()


def test_a_lock_is_given_back_if_no_thread_can_serve_the_pages(
    served: Served, alice: User, bob: User
) -> None:
    """The kernel waits for pages that others read, and would wait for the last thread."""
    served.let(waits=False, finishes=0)
    alice.denied(WRITE, 0, 9, why="ENOLCK")
    assert alice.flock(WRITE) == "ENOLCK"
    assert served.told() == 0
    bob.denied(WRITE, why="ENOLCK")  # free, and the state is unknown again
    assert bob.held() == alice.held() == []
    served.let(waits=True, finishes=0)
    bob.lock(WRITE)
    assert bob.flock(WRITE) == "locked"
    assert served.told() == 1
    assert served.asked() == (1, 0)


def test_a_lock_is_given_back_if_no_process_can_wait_for_the_pages(source: Path) -> None:
    """The thread itself must not wait: the wait would outlast the death of the worker."""
    (source / "file").touch()

    def run() -> None:
        volume = Served(source / "file")
        user = User(volume, ALICE)
        with threads_limited(os.getpid(), 0):
            user.denied(WRITE, 0, 9, why="ENOLCK")
            assert user.flock(WRITE) == "ENOLCK"
        assert volume.told() == 0
        assert user.held() == []
        user.lock(WRITE)
        assert volume.told() == 1
        volume.end()

    ROOT.run(run)


# Other threads that are about to unlock


@pytest.mark.parametrize(("finishes", "asked"), [(0, 1), (1, 2), (2, 3), (9, 3)])
def test_a_denied_lock_is_tried_again_after_others_have_finished(
    served: Served, alice: User, bob: User, finishes: int, asked: int
) -> None:
    alice.lock(WRITE)
    served.let(waits=True, finishes=finishes)
    bob.denied(WRITE)
    assert served.asked() == (0, asked)
