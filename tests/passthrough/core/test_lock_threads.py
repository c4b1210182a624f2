"""Threads that lock, wait and close at once, and owners that wait for one another."""

import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

from tests.support.tools.core_locks import (
    DEADLOCK,
    PATIENCE_S,
    READ,
    SETLK,
    SETLKW,
    UNLOCK,
    WRITE,
    Served,
    User,
    name,
)

ALICE, BOB, CAROL = 1, 2, 3


def test_closing_the_file_drops_a_lock_that_is_waited_for(
    served: Served, alice: User, bob: User
) -> None:
    """If one thread closes while another waits, fcntl(2), no lock is kept in secret."""
    alice.lock(WRITE)
    waiting = bob.wait(WRITE)
    waiting.blocked()
    bob.flush()
    assert served.descriptions() == 1
    alice.lock(UNLOCK)

    assert waiting.ended() == "EBADF"
    alice.lock(WRITE)


def test_closing_and_locking_again_while_a_thread_waits_keeps_both_locks(
    alice: User, bob: User
) -> None:
    alice.lock(WRITE, 0, 9)
    waiting = bob.wait(WRITE, 0, 9)
    waiting.blocked()
    bob.flush()
    bob.lock(READ, 50, 59)
    alice.lock(UNLOCK)

    assert waiting.ended() == "locked"
    assert bob.held() == [(WRITE, 0, 9), (READ, 50, 59)]
    alice.denied(READ, 0, 0)


def test_a_new_description_keeps_a_wait_on_the_former_one(served: Served, alice: User) -> None:
    """The thread gets its lock on the former one, and takes it again on the new one."""
    reading = User(served, BOB, os.O_RDONLY)
    alice.lock(WRITE, 0, 9)
    waiting = reading.wait(READ, 0, 9)
    waiting.blocked()
    writing = User(served, BOB)
    writing.lock(WRITE, 50, 59)
    alice.lock(UNLOCK)

    assert waiting.ended() == "locked"
    assert writing.held() == [(READ, 0, 9), (WRITE, 50, 59)]
    alice.denied(WRITE, 0, 0)
    alice.lock(READ, 0, 0)
    writing.lock(UNLOCK)
    alice.lock(WRITE)


def test_owners_that_would_wait_for_one_another_are_told(
    served: Served, alice: User, bob: User
) -> None:
    carol = User(served, CAROL)
    for user, start in ((alice, 0), (bob, 10), (carol, 20)):
        user.lock(WRITE, start, start + 9)
    first = alice.wait(WRITE, 10, 10)
    first.blocked()
    second = bob.wait(WRITE, 20, 20)
    second.blocked()

    assert carol.wait(WRITE, 0, 0).ended() == DEADLOCK
    assert carol.wait(WRITE, 30, 39).ended() == "locked"
    carol.lock(UNLOCK)
    assert second.ended() == "locked"
    bob.lock(UNLOCK)
    assert first.ended() == "locked"


def test_owners_that_wait_for_one_another_on_two_files_are_told(
    served: Served, source: Path, alice: User, bob: User
) -> None:
    (source / "other").touch()
    others = [User(served, owner, path=source / "other") for owner in (ALICE, BOB)]
    alice.lock(READ)
    bob.lock(READ)
    others[1].lock(WRITE)
    waiting = others[0].wait(READ, 7, 7)
    waiting.blocked()

    assert bob.wait(WRITE).ended() == DEADLOCK
    others[1].flush()
    assert waiting.ended() == "locked"


def test_an_owner_is_not_in_its_own_way(served: Served, alice: User) -> None:
    """Two threads of one owner: the wait of one may be for the other owner alone."""
    bob = User(served, BOB)
    alice.lock(WRITE, 0, 9)
    bob.lock(WRITE, 20, 29)
    waiting = alice.wait(WRITE, 0, 29)
    waiting.blocked()
    assert alice.wait(WRITE, 0, 9).ended() == "locked"
    bob.lock(UNLOCK)
    assert waiting.ended() == "locked"


def test_a_volume_that_ends_leaves_its_waits_alone(source: Path, alice: User) -> None:
    """The process ends with them; until then their memory stays."""
    other = Served(source / "file")
    stranger = User(other, BOB)
    alice.lock(WRITE)
    waiting = stranger.wait(WRITE)
    waiting.blocked()
    other.close()
    alice.lock(UNLOCK)
    assert waiting.ended() == "EBADF"
    alice.lock(WRITE)
    other.end()


class Holder(threading.Thread):
    """An owner that locks, waits, is interrupted, unlocks and closes, for 2 s."""

    def __init__(self, user: User, holders: list[int], seed: int) -> None:
        super().__init__(daemon=True)
        self._user, self._holders = user, holders
        self._draw = random.Random(seed).randrange  # noqa: S311
        self._unique = user.owner * 1_000_000
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[list[int]] = []
        self.start()

    def run(self) -> None:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            result = self._lock()
            self.outcomes[result] += 1
            if result == "locked":
                self._hold()

    def _lock(self) -> str:
        self._unique += 2
        interrupter = threading.Thread(target=self._user.volume.interrupt, args=(self._unique,))
        way = self._draw(3)
        if way == 1:
            interrupter.start()
        opcode = SETLKW if way else SETLK
        result = name(self._user.ask(opcode, (WRITE, 0, 9), unique=self._unique))
        if way == 1:
            interrupter.join(PATIENCE_S)
        return result

    def _hold(self) -> None:
        self._holders.append(self._user.owner)
        if len(self._holders) > 1:
            self.wrong.append(list(self._holders))
        self._holders.remove(self._user.owner)
        if self._draw(2):
            self._user.flush()
        else:
            self._user.lock(UNLOCK, 0, 9)


def test_threads_lock_wait_interrupt_and_close(served: Served) -> None:
    """No two owners ever have the lock at once, and nothing is left over."""
    holders: list[int] = []
    threads = [Holder(User(served, owner), holders, owner) for owner in range(1, 9)]
    outcomes: Counter[str] = Counter()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert thread.wrong == []
        outcomes += thread.outcomes
    for user in served.users:
        user.flush()

    assert set(outcomes) == {"locked", "EINTR", "EAGAIN"}
    assert served.descriptions() == 0


def test_threads_of_one_owner_lock_and_close(served: Served) -> None:
    """Descriptions come and go under threads that use them.

    A thread that locks may find the locks of a description that another thread is about to close.
    """
    users = [User(served, ALICE) for _ in range(6)]
    bob = User(served, BOB)
    outcomes: set[str] = set()
    until = time.monotonic() + 1

    def work(user: User, draw: random.Random) -> None:
        while time.monotonic() < until:
            way = draw.randrange(8)
            start = draw.randrange(50)
            if way == 0:
                user.flush()
            elif way == 1:
                user.seen(WRITE)
            else:
                kind = (READ, WRITE, UNLOCK)[way % 3]
                outcomes.add(name(user.ask(SETLK, (kind, start, start + 5))))

    threads = [
        threading.Thread(target=work, args=(user, random.Random(number)))  # noqa: S311
        for number, user in enumerate(users)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    users[0].flush()
    assert outcomes <= {"locked", "EAGAIN", "EBADF"}
    assert served.descriptions() == 0
    bob.lock(WRITE)
