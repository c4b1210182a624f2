"""Mixed load for a long time: nothing comes out wrong, and nothing is left over.

Several users' processes work on one mount at once, each in a directory of its own of which it knows
what must be there, and all in one where they race (crowd.py). fio writes, and verifies what it
reads. The kernel is made to forget meanwhile. That goes on in laps. After each one the mount shows
what the source holds, and that is what everybody foresees; and when the files have been removed,
the worker holds what it held before there were any: inodes, open files, locks, descriptors,
threads, as many as then. Its memory is what it was after the first lap.

Two minutes, shared by the sessions, and `kernel` over io_uring beside /dev/fuse. An hour, by hand:

    PASSFS_SOAK_SECONDS=3600 make test ARGS='tests/soak -rP'

PASSFS_SOAK_SEED=anything draws other operations. Each process draws its own, the same ones each
time; how they meet is up to the machine. TMPDIR=/dev/shm has the files in memory, which gives more
operations in the same time, and fewer waits.
"""

import fcntl
import os
import socket
from contextlib import ExitStack
from operator import gt
from pathlib import Path

import pytest

from tests.fuzz import tree
from tests.fuzz.differential import ALARMING
from tests.soak.crowd import Lap, noting
from tests.soak.holdings import Holdings, Memory, Watch
from tests.support.tools.mounted import mounted
from tests.support.tools.rings import switched_for

SECONDS = float(os.environ.get("PASSFS_SOAK_SECONDS", "120"))
SEED = os.environ.get("PASSFS_SOAK_SEED", "0")
SUBJECTS = {
    "kernel": {"session": "kernel"},
    "libfuse": {"session": "libfuse"},
    "kernel over io_uring": {"session": "kernel", "transport": "io_uring"},
}
LAPS = 3
LONGEST_LAP_S = 300.0
# For what comes after each lap: reading everything three times, removing it, settling.
SLACK_S = 180.0
DESCRIPTORS = 512
"""So few that there are inodes of both kinds, with a descriptor and with a file handle."""
KEPT = Memory(blocks=8_000, resident=6 << 20)
"""By how much memory may grow after the first lap.

The worker remembers some things of the last thousand files that were locked, locks.py, and
allocators keep what they may need again.
"""

LOG_SHOWN = 2_000
"""Characters of what the worker has logged."""
SHOWN = 50
"""Lines of what is wrong; one mistake can touch every file."""


def laps() -> list[float]:
    """How long each lap takes, in seconds."""
    each = SECONDS / len(SUBJECTS)
    number = max(LAPS, round(each / LONGEST_LAP_S))
    return [each / number] * number


@pytest.mark.timeout(SECONDS / len(SUBJECTS) + len(laps()) * SLACK_S)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_nothing_goes_wrong_and_nothing_is_left_over(base: Path, subject: str) -> None:
    with ExitStack() as stack:
        ours, theirs = map(stack.enter_context, socket.socketpair())
        program = "tests.support.tools.watched"
        options = SUBJECTS[subject]
        given = (base, options, DESCRIPTORS)
        with switched_for(options):
            served = stack.enter_context(mounted(*given, program=program, stdin=theirs.fileno()))
        watch = Watch(served, ours)
        begun = len(served.logged().encode())  # what it says at its start is about options
        before, memory = watch.settled(), list[Memory]()
        for number, seconds in enumerate(laps()):
            lap = Lap(served, options["session"], f"{subject} {SEED} {number}", seconds)
            wrong = one_lap(lap, watch, before)
            if log := ALARMING.search(served.logged(begun)):
                wrong.append(f"logged: {served.logged(begun)[log.start() :][:LOG_SHOWN]}")
            if not wrong:
                memory.append(watch.memory())
                print(f"lap {number}: {memory[-1]}")  # noqa: T201 - for who asks, -rP
                grown = [now - first for now, first in zip(memory[-1], memory[0], strict=True)]
                if any(map(gt, grown, KEPT)):
                    wrong.append(f"memory after each lap: {memory}")
            if wrong:
                left = [f"and {len(wrong) - SHOWN} lines more"] if len(wrong) > SHOWN else []
                text = "\n".join([f"{subject}, lap {number}:", *wrong[:SHOWN], *left])
                pytest.fail(text, pytrace=False)


def one_lap(lap: Lap, watch: Watch, before: Holdings) -> list[str]:
    """Have everybody work, then remove everything; gives what is wrong, a line for each."""
    outcome = lap.run()
    print(lap.seed, dict(outcome.done))  # noqa: T201 - for who asks, -rP
    if lap.served.process.poll() is not None:
        return [f"the worker has ended: {lap.served.logged()}", *outcome.wrong]
    wrong = [f"still locked: {path}" for path in locked(lap.served.source)]
    with lap.served.limited(SLACK_S):
        with noting("removing everything", wrong):
            tree.empty(bytes(lap.served.mountpoint))
        with noting("looking at what is left", wrong):
            wrong += [f"left over: {line}" for line in watch.settled(before).more_than(before)]
    return wrong + outcome.wrong


def locked(top: Path) -> list[str]:
    """The files below *top* that somebody still has a lock on."""
    found = []
    for directory, _, names in os.walk(top):
        for path in (os.path.join(directory, name) for name in names):
            if os.path.islink(path):
                continue
            with open(path, "rb+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(path)
    return found
