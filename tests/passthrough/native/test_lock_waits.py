"""Waits for locks, and INTERRUPT before, while and after a request waits."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.passthrough.native.probe_locks import EARLY, WAITS
from tests.support.tools.direct import descriptors_below
from tests.support.tools.native_locks import (
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
RESEND = 1 << 63


@pytest.fixture
def served(source: Path) -> Iterator[Served]:
    (source / "file").write_bytes(bytes(100))
    volume = Served(source / "file")
    yield volume
    assert volume.waiting() == 0
    volume.end()
    assert descriptors_below(source) == set()


@pytest.fixture
def alice(served: Served) -> User:
    return User(served, ALICE)


@pytest.fixture
def bob(served: Served) -> User:
    return User(served, BOB)


def test_a_free_lock_takes_no_wait(served: Served, alice: User) -> None:
    alice.lock(READ)
    served.told()
    served.let(waits=False, finishes=0)
    assert alice.wait(WRITE).ended() == "locked"
    assert alice.wait_flock(WRITE).ended() == "locked"
    assert served.asked() == (0, 0)


def test_the_last_thread_waits_for_no_lock(served: Served, alice: User, bob: User) -> None:
    alice.lock(WRITE)
    alice.flock(WRITE)
    served.let(waits=False, finishes=0)
    assert bob.wait(WRITE).ended() == "ENOLCK"
    assert bob.wait_flock(WRITE).ended() == "ENOLCK"
    assert served.asked() == (2, 0)


def test_a_wait_ends_with_the_lock_when_it_is_free(served: Served, alice: User, bob: User) -> None:
    alice.lock(WRITE)
    waiting = bob.wait(WRITE, 5, 5)
    waiting.blocked()
    assert served.waiting() == 1
    alice.lock(UNLOCK, 0, 9)

    assert waiting.ended() == "locked"
    alice.denied(WRITE, 5, 5)
    assert bob.held() == [(WRITE, 5, 5)]


def test_a_wait_can_be_interrupted(served: Served, alice: User, bob: User) -> None:
    alice.lock(WRITE)
    waiting = bob.wait(WRITE)
    waiting.blocked()
    served.interrupt(waiting.unique + 1)
    assert served.early() == 1
    waiting.interrupt()

    assert waiting.ended() == "EINTR"
    alice.lock(UNLOCK)
    assert alice.seen() is None
    assert served.early() == 1


def test_a_request_that_is_sent_again_is_the_same_request(
    served: Served, alice: User, bob: User
) -> None:
    alice.lock(WRITE)
    waiting = bob.wait(WRITE, unique=RESEND | 800)
    waiting.blocked()
    served.interrupt(800)
    assert waiting.ended() == "EINTR"
    waiting = bob.wait(WRITE, unique=802)
    waiting.blocked()
    served.interrupt(RESEND | 802)
    assert waiting.ended() == "EINTR"
    assert served.early() == 0


def test_an_interrupt_comes_at_any_time(served: Served, alice: User, bob: User) -> None:
    """Also between the look at the lock and the wait for it."""
    alice.lock(WRITE)
    draw = random.Random(1).randrange  # noqa: S311
    for turn in range(300):
        waiting = bob.wait(WRITE) if turn % 2 else bob.wait_flock(WRITE)
        if not turn % 2:
            assert alice.flock(WRITE) in {"locked", "EAGAIN"}
        for _ in range(draw(100)):
            os.sched_yield()
        waiting.interrupt()
        assert waiting.ended() in ({"EINTR"} if turn % 2 else {"EINTR", "locked"})
        bob.flock(UNLOCK)
        alice.flock(UNLOCK)
    assert served.waiting() == 0


def test_an_interrupt_that_is_served_before_its_request_ends_the_wait(
    served: Served, alice: User, bob: User
) -> None:
    """Two threads may take the two requests, and the second may be faster."""
    alice.lock(WRITE)
    served.interrupt(700)
    served.interrupt(700)
    assert served.early() == 1

    assert bob.wait(WRITE, unique=700).ended() == "EINTR"
    assert served.early() == 0
    waiting = bob.wait(WRITE, unique=700)
    waiting.blocked()
    waiting.interrupt()
    assert waiting.ended() == "EINTR"


def test_interrupts_of_requests_that_never_wait_are_not_kept_for_ever(
    served: Served, alice: User, bob: User
) -> None:
    alice.lock(WRITE)
    for number in range(2, 20_002, 2):
        served.interrupt(number)
    assert served.early() == EARLY

    first = 20_002 - 2 * EARLY
    forgotten = bob.wait(WRITE, unique=first - 2)
    forgotten.blocked()
    for unique in (first, 20_000, first + EARLY):
        assert bob.wait(WRITE, unique=unique).ended() == "EINTR"
    assert served.early() == EARLY - 3
    forgotten.interrupt()
    assert forgotten.ended() == "EINTR"


def test_a_signal_for_the_process_ends_no_wait(alice: User, bob: User) -> None:
    alice.lock(WRITE)
    waiting = bob.wait(WRITE)
    waiting.blocked()
    for _ in range(20):
        signal.pthread_kill(waiting.ident or 0, signal.SIGURG)
        time.sleep(0.001)
    waiting.blocked()
    alice.lock(UNLOCK)
    assert waiting.ended() == "locked"


def test_a_thread_that_blocks_all_signals_is_interrupted(alice: User, bob: User) -> None:
    alice.lock(WRITE)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
    waiting = bob.wait(WRITE)  # the thread inherits the mask
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    waiting.blocked()
    waiting.interrupt()
    assert waiting.ended() == "EINTR"


def test_no_more_than_a_certain_number_wait(served: Served, alice: User, bob: User) -> None:
    alice.lock(WRITE)
    served.limit_waits(1)
    first = bob.wait(WRITE)
    first.blocked()
    assert bob.wait(WRITE).ended() == "ENOLCK"
    first.interrupt()
    assert first.ended() == "EINTR"
    second = bob.wait(WRITE)
    second.blocked()
    second.interrupt()
    assert second.ended() == "EINTR"


@pytest.mark.slow
def test_as_many_as_the_limit_wait(served: Served, alice: User, bob: User) -> None:
    threading.stack_size(1 << 16)
    try:
        alice.lock(WRITE)
        waiting = [bob.wait(WRITE, 0, 0) for _ in range(WAITS)]
        for one in waiting:
            one.blocked()
        assert served.waiting() == WAITS
        assert bob.wait(WRITE, 0, 0).ended() == "ENOLCK"
        for one in waiting[1::2]:
            one.interrupt()
        alice.lock(UNLOCK)
    finally:
        threading.stack_size(0)
    assert {one.ended() for one in waiting[1::2]} == {"EINTR"}
    assert {one.ended() for one in waiting[::2]} == {"locked"}


def test_many_wait(served: Served, alice: User) -> None:
    alice.lock(WRITE)
    users = {owner: User(served, owner) for owner in range(10, 60)}
    waiting = [user.wait(WRITE, 0, 0) for user in users.values()]
    for one in waiting:
        one.blocked()
    for one in waiting[::2]:
        one.interrupt()
    assert {one.ended() for one in waiting[::2]} == {"EINTR"}
    alice.lock(UNLOCK)
    # Each holds it until it closes.
    for _ in waiting[1::2]:
        holder = None
        while holder is None or not holder.pid:  # granted, and not noted yet
            holder = alice.seen(WRITE, 0, 0)
        users[holder.pid - 1000].flush()
    assert {one.ended() for one in waiting[1::2]} == {"locked"}


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
