"""The operations of the soak test: of each process in its own directory, and races in another one.

Beside names, the processes read and write by open files that have lost their names, copy ranges,
punch holes, map files and lock them. tests/soak/actor.py and shared.py have the operations.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from tests.fuzz import tree
from tests.soak import shared
from tests.soak.actor import Actor
from tests.soak.lap import below
from tests.soak.model import Shown
from tests.soak.shared import Racer
from tests.standby.load import Load, Task
from tests.support.tools.callers import Caller

PROCESSES = 2


class Mixed(Load):
    """Processes, each with a directory of its own."""

    def prepare(self) -> None:
        """Make the directories, and one that users may not enter."""
        (self.place.beneath / "root").mkdir(mode=0o700)
        shared.prepare(str(self.place.beneath / "shared"))
        for number in range(PROCESSES):
            directory = self.place.beneath / f"own{number}"
            directory.mkdir(mode=0o700)
            os.chown(directory, self.caller(number).uid, self.caller(number).gid)

    def tasks(self) -> Sequence[tuple[Caller, Callable[[], Task]]]:
        """Return the processes."""
        return [(self.caller(n), partial(_Process, self, n)) for n in range(PROCESSES)]

    def wrong(self, results: Sequence[object]) -> list[str]:
        """Compare the mount, its source and the models."""
        seen, beneath = self.read()
        found = [f"mount / source: {line}" for line in tree.differences(seen, beneath)]
        reports = [result for result in results if isinstance(result, tuple)]
        for number, (expected, _) in enumerate(reports):
            own = below(beneath, b"own%d" % number)
            right = {os.fsencode(path): node for path, node in expected.items()}
            found += [f"{number}: source / expected: {line}" for line in tree.lines(own, right)]
        done = [counts for _, counts in reports]
        return found + shared.wrong(str(self.place.beneath / "shared"), done)


class _Process:
    def __init__(self, load: Mixed, number: int) -> None:
        os.chdir(load.place.seen / f"own{number}")
        self._rng = load.steps(number).rng
        caller = load.caller(number)
        self._actor = Actor(caller, self._rng, "kernel")
        self._racer = Racer(caller, self._rng, str(load.place.seen / "shared"), number)

    @property
    def steps(self) -> str:
        """Return the last steps of both."""
        return "\n".join([*self._actor.steps, "races:", *self._racer.steps])

    def step(self) -> None:
        """Do one operation of either kind."""
        (self._actor if self._rng.random() < 0.7 else self._racer).step()

    def end(self) -> tuple[dict[str, Shown], Counter[str]]:
        """Return the expected tree of the own directory, and the counts of races."""
        return self._actor.finish(), self._racer.done
