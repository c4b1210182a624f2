"""A worker that serves no further request, and makes room for a successor."""

import fcntl
import os
import time
from pathlib import Path

from passthrough.options.choices import SessionKind
from passthrough.session.abi import Init, Opcode
from tests.support.fakes.kernel import message
from tests.support.tools import wire
from tests.support.tools.abi import RELEASE_FLOCK_UNLOCK
from tests.support.tools.callers import ROOT
from tests.support.tools.held import one_held_before
from tests.support.tools.options import effective
from tests.support.tools.processes import wait_until
from tests.support.tools.successors import Retiring, flock, waits

CONFIG = effective(session=SessionKind.KERNEL)
FEATURES = int(Init.HANDLE_KILLPRIV_V2 | Init.FLOCK_LOCKS)
WAITS = 6
FIRST = 100
WRITE = 200
LATE = 300
AGAIN = 400
FLOCK_CALL = {"x86_64": 73, "aarch64": 32}[os.uname().machine]
SETTLED_S = 0.05


def test_a_request_that_comes_too_late_is_whole(source: Path) -> None:
    """It is read by a thread that gives its pages back at its end; the first threads do not."""
    (source / "file").touch()

    def run() -> None:
        with Retiring(source, CONFIG, FEATURES) as volume:
            nodeid, fh = volume.open()
            have_late_threads(volume, source, nodeid, fh)

            volume.retire()
            body = wire.WRITE_IN.pack(fh, 0, 7, 0, 0, os.O_RDWR) + b"written"
            volume.send(message(Opcode.WRITE, body, nodeid, WRITE))
            volume.await_in_hand(WRITE)
            time.sleep(SETTLED_S)  # the thread ends
            volume.kill()
            volume.start_successor()

            assert volume.reply_to(WRITE).error == 0
            assert (source / "file").read_bytes() == b"written"

    ROOT.run(run)


def test_a_lock_waits_for_the_successor_if_no_other_thread_is_left(source: Path) -> None:
    """The thread is about to try the lock when the others leave."""
    (source / "file").touch()

    def run() -> None:
        with Retiring(source, CONFIG, FEATURES) as volume:
            nodeid, fh = volume.open()
            first, *others = volume.readers_first()
            request = message(Opcode.SETLKW, flock(fh, owner=FIRST), nodeid, FIRST)
            with (source / "file").open("r+b") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                with one_held_before(FLOCK_CALL, [first, *others], lambda: volume.send(request)):
                    volume.retire()
                    for unique in range(LATE, LATE + 2 * len(others), 2):
                        volume.send(message(Opcode.STATFS, unique=unique))
                    wait_until(lambda: volume.threads() == [first])
                time.sleep(SETTLED_S)  # the thread tries the lock, and then waits
                volume.kill()
            # A successor closes what is open and was not before the first worker.
            volume.start_successor()
            assert volume.reply_to(FIRST).error == 0

    ROOT.run(run)


def test_a_lock_waits_for_the_successor_with_the_release_of_the_file_in_its_way(
    source: Path,
) -> None:
    """The caller has closed that file, but the thread leaves the RELEASE to the successor."""
    (source / "file").touch()

    def run() -> None:
        with Retiring(source, CONFIG, FEATURES) as volume:
            nodeid, held = volume.open()
            _, fh = volume.open(6)
            writing = message(Opcode.SETLK, flock(held, fcntl.F_WRLCK), nodeid, 10)
            assert volume.ask(writing).error == 0
            first, *others = volume.readers_first()
            request = message(Opcode.SETLK, flock(fh), nodeid, FIRST)
            with one_held_before(FLOCK_CALL, [first, *others], lambda: volume.send(request)):
                volume.retire()
                volume.send(message(Opcode.RELEASE, unlocking(held), nodeid, LATE))
                volume.await_in_hand(LATE)
                for unique in range(LATE + 2, LATE + 2 * len(others), 2):
                    volume.send(message(Opcode.STATFS, unique=unique))
                wait_until(lambda: volume.threads() == [first])
            wait_until(lambda: waits(source / "file") == 1)
            volume.kill()
            volume.start_successor()
            # The lock waits for the RELEASE for 60 ms, in which this machine may run neither.
            unanswered = {FIRST, LATE}
            while unanswered:
                unanswered.discard(volume.reply().unique)
            assert volume.ask(message(Opcode.SETLK, flock(fh), nodeid, AGAIN)).error == 0

    ROOT.run(run)


def unlocking(fh: int) -> bytes:
    """Return the body of a RELEASE of a file that has had a lock of flock(2)."""
    return wire.RELEASE_IN.pack(fh, 0, RELEASE_FLOCK_UNLOCK, 1)


def have_late_threads(volume: Retiring, source: Path, nodeid: int, fh: int) -> None:
    """Have requests wait for a lock, each in a thread of its own; the last thread then reads."""
    with (source / "file").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for number in range(FIRST, FIRST + 2 * WAITS, 2):
            volume.send(message(Opcode.SETLKW, flock(fh, owner=number), nodeid, number))
            volume.await_in_hand(number)
    for _ in range(WAITS):
        assert volume.reply().error == 0
