"""Mixed load for a long time: all results are right, and no resource leaks.

Processes of several users work on one mount at once (lap.py). Each has a directory of its own, with
a model of the expected tree, and all race in a shared directory. fio writes, and verifies its data.
The test makes the kernel forget inodes at the same time.

The load runs in laps. After each lap the mount, the source and the expected trees are the same. The
files are then removed, and the worker must have as many inodes, open files, locks, descriptors and
threads as before. Its memory must stay as it was after the first lap.

The test takes 45 s, shared by three mounts: `kernel`, `libfuse`, and `kernel` over io_uring.
An hour, by hand:

    PASSFS_SOAK_SECONDS=3600 make test ARGS='tests/soak -rP'

PASSFS_SOAK_SEED=anything draws other operations. With the same seed each process draws the same
operations, but their interleaving depends on the machine. TMPDIR=/dev/shm puts the files into
memory, which gives more operations in the same time, and fewer waits.
"""

import os
import socket
from contextlib import ExitStack
from operator import gt
from pathlib import Path

import pytest

from tests.fuzz import tree
from tests.fuzz.differential import ALARMING
from tests.soak.lap import Lap, noting
from tests.soak.resources import Memory, Resources, Watch, locked
from tests.support.tools.mounted import mounted
from tests.support.tools.rings import switched_for

SECONDS = float(os.environ.get("PASSFS_SOAK_SECONDS", "45"))
SEED = os.environ.get("PASSFS_SOAK_SEED", "0")
SUBJECTS = {
    "kernel": {"session": "kernel"},
    "libfuse": {"session": "libfuse"},
    "kernel over io_uring": {"session": "kernel", "transport": "io_uring"},
}
LAPS = 3
LONGEST_LAP_S = 300.0
# For the work after each lap: reading all files three times, removing them, settling.
SLACK_S = 180.0
DESCRIPTORS = 512
"""With so few, some inodes have a descriptor, and others a file handle."""
KEPT = Memory(blocks=8_000, resident=6 << 20)
"""The allowed growth of memory after the first lap.

The worker keeps data of the last thousand locked files, locks.py, and allocators keep free memory.
"""

LOG_SHOWN = 2_000
"""Characters of the worker's log in a report."""
SHOWN = 50
"""Lines of errors in a report: one fault can affect every file."""


def laps() -> list[float]:
    """Return the duration of each lap, in seconds."""
    each = SECONDS / len(SUBJECTS)
    number = max(LAPS, round(each / LONGEST_LAP_S))
    return [each / number] * number


@pytest.mark.slow
@pytest.mark.timeout(SECONDS / len(SUBJECTS) + len(laps()) * SLACK_S)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_mixed_load_has_right_results_and_no_leaks(base: Path, subject: str) -> None:
    with ExitStack() as stack:
        ours, theirs = map(stack.enter_context, socket.socketpair())
        program = "tests.support.tools.watched"
        options = SUBJECTS[subject]
        given = (base, options, DESCRIPTORS)
        with switched_for(options):
            served = stack.enter_context(mounted(*given, program=program, stdin=theirs.fileno()))
        watch = Watch(served, ours)
        begun = len(served.logged().encode())  # at its start the worker logs about its options
        before, memory = watch.settled(), list[Memory]()
        for number, seconds in enumerate(laps()):
            lap = Lap(served, options["session"], f"{subject} {SEED} {number}", seconds)
            wrong = run_lap(lap, watch, before)
            if log := ALARMING.search(served.logged(begun)):
                wrong.append(f"logged: {served.logged(begun)[log.start() :][:LOG_SHOWN]}")
            if not wrong:
                memory.append(watch.memory())
                print(f"lap {number}: {memory[-1]}")  # noqa: T201 - shown by -rP
                grown = [now - first for now, first in zip(memory[-1], memory[0], strict=True)]
                if any(map(gt, grown, KEPT)):
                    wrong.append(f"memory after each lap: {memory}")
            if wrong:
                left = [f"and {len(wrong) - SHOWN} lines more"] if len(wrong) > SHOWN else []
                text = "\n".join([f"{subject}, lap {number}:", *wrong[:SHOWN], *left])
                pytest.fail(text, pytrace=False)


def run_lap(lap: Lap, watch: Watch, before: Resources) -> list[str]:
    """Run a lap, then remove all files; return a line for each error."""
    outcome = lap.run()
    print(lap.seed, dict(outcome.done))  # noqa: T201 - shown by -rP
    if lap.served.process.poll() is not None:
        return [f"the worker has ended: {lap.served.logged()}", *outcome.wrong]
    wrong = [f"still locked: {path}" for path in locked(lap.served.source)]
    with lap.served.limited(SLACK_S):
        with noting("removing everything", wrong):
            tree.empty(bytes(lap.served.mountpoint))
        with noting("counting resources", wrong):
            wrong += [f"left over: {line}" for line in watch.settled(before).more_than(before)]
    return wrong + outcome.wrong
