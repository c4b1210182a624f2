"""Waits for locks, and INTERRUPT before, while and after a request waits."""

import os
import random
import signal
import threading
import time

import pytest

from tests.passthrough.core.probe_locks import NAMED, WAITS
from tests.support.tools.core_locks import (
    READ,
    UNLOCK,
    WRITE,
    Served,
    User,
)

ALICE, BOB, CAROL = 1, 2, 3
RESEND = 1 << 63
LOCK_HANGS = 10  # REPORT_LOCK_HANGS of core/state.pxd


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
    assert served.waiting() == 1
    waiting.interrupt()

    assert waiting.ended() == "EINTR"
    alice.lock(UNLOCK)
    assert alice.seen() is None
    assert served.named() == 2


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
    assert served.named() == 2


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
    assert served.named() == 1

    assert bob.wait(WRITE, unique=700).ended() == "EINTR"
    waiting = bob.wait(WRITE, unique=702)
    waiting.blocked()
    waiting.interrupt()
    assert waiting.ended() == "EINTR"


def test_a_request_that_was_interrupted_waits_no_more(alice: User, bob: User) -> None:
    """A worker may die when INTERRUPT is served, and the wait that it ends not answered."""
    alice.lock(WRITE)
    waiting = bob.wait(WRITE, unique=704)
    waiting.blocked()
    waiting.interrupt()
    assert waiting.ended() == "EINTR"

    assert bob.wait(WRITE, unique=704).ended() == "EINTR"


def test_interrupts_of_requests_that_never_wait_are_not_kept_for_ever(
    served: Served, alice: User, bob: User
) -> None:
    alice.lock(WRITE)
    for number in range(2, 20_002, 2):
        served.interrupt(number)
    assert served.named() == NAMED

    first = 20_002 - 2 * NAMED
    forgotten = bob.wait(WRITE, unique=first - 2)
    forgotten.blocked()
    for unique in (first, 20_000, first + NAMED):
        assert bob.wait(WRITE, unique=unique).ended() == "EINTR"
    assert served.named() == NAMED
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


def test_a_call_that_no_signal_ends_does_not_hold_an_interrupt_up(served: Served) -> None:
    """As on an NFS server that does not answer; the thread says so once, and goes on."""
    goes_on = threading.Event()
    hanging = [
        threading.Thread(target=served.hang, args=(number, goes_on.wait), daemon=True)
        for number in (700, 702)
    ]
    for thread in hanging:
        thread.start()
    while served.waiting() < 2:
        time.sleep(0.001)
    began = time.monotonic()
    interrupting = [
        threading.Thread(target=served.interrupt, args=(number,), daemon=True)
        for number in (700, 702)
    ]
    for thread in interrupting:
        thread.start()
    for thread in interrupting:
        thread.join(60.0)
        assert not thread.is_alive()
    assert time.monotonic() - began > 0.9
    assert served.reports == [(LOCK_HANGS, 0)]
    goes_on.set()
    for thread in hanging:
        thread.join(10.0)


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
