"""Loads: tasks of several processes in one directory, with a check of all results.

A task repeats its step until the trial ends, and raises at the first wrong result. A load checks at
the end what only all its tasks together, or the host's files, can show.
"""

import mmap
import random
import select
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.fuzz import tree
from tests.support.tools.callers import Call, Caller

REMEMBERED_STEPS = 20
_COUNT = struct.Struct("=I")


class Task(Protocol):
    """The work of one process. The process makes the object as its caller."""

    def step(self) -> None:
        """Do one step, and raise if a result is wrong."""

    def end(self) -> object:
        """Return what `Load.wrong` needs of this task."""


class Place(NamedTuple):
    """The directories of a load, which may be the same one."""

    seen: Path
    """The directory in the mount, in which the tasks work."""
    beneath: Path
    """The same directory on the host."""
    twin: Path
    """A directory on the host, for the same operations."""
    same_times: bool = True
    """False if the kernel buffers writes: the host's files then get their times later."""
    whiteouts: bool = True
    """False if the volume refuses RENAME_WHITEOUT, as with squashed ids."""


class Steps:
    """Random choices of a task, and its last steps for the report of an error."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
        self._last: deque[str] = deque(maxlen=REMEMBERED_STEPS)

    def note(self, *words: object) -> None:
        """Remember the next step."""
        self._last.append(" ".join(map(str, words)))

    def __str__(self) -> str:
        """Return the last steps, one on each line."""
        return "\n".join(self._last)


class Load(ABC):
    """A load in one place."""

    SHORT = True
    """True if a step is short, so that each task does many of them."""

    def __init__(self, place: Place, callers: Sequence[Caller], seed: str) -> None:
        """Prepare for tasks of *callers*, two users, which may be the same one."""
        self.place = place
        self.callers = callers
        self.seed = seed

    def prepare(self) -> None:  # noqa: B027 - some loads need no files
        """Make the files at the start, on the host. The directories exist, for all users."""

    @abstractmethod
    def tasks(self) -> Sequence[tuple[Caller, Callable[[], Task]]]:
        """Return the caller of each process, and the function that makes its task."""

    @abstractmethod
    def wrong(self, results: Sequence[object]) -> list[str]:
        """Return a line for each wrong result; *results* has what `Task.end` has returned."""

    def read(self) -> tuple[tree.Tree, tree.Tree]:
        """Return the trees of the mount and of the host, which should be equal."""
        seen, beneath = (tree.read(bytes(side)) for side in (self.place.seen, self.place.beneath))
        if self.place.same_times:
            return seen, beneath
        return tree.without_current_times(seen), tree.without_current_times(beneath)

    def steps(self, number: int) -> Steps:
        """Return the random choices of task *number*."""
        return Steps(f"{self.seed} {type(self).__name__} {number}")

    def caller(self, number: int) -> Caller:
        """Return the caller of task *number*: the callers in turn."""
        return self.callers[number % len(self.callers)]


class _Board:
    """Memory that the trial and all tasks share: the end, and the number of steps of each task."""

    def __init__(self, tasks: int) -> None:
        self._memory = mmap.mmap(-1, 4 + _COUNT.size * tasks)

    @property
    def over(self) -> bool:
        return self._memory[0] != 0

    def end(self) -> None:
        self._memory[0] = 1

    def count(self, task: int) -> None:
        _COUNT.pack_into(self._memory, 4 + _COUNT.size * task, self.steps(task) + 1)

    def steps(self, task: int) -> int:
        (number,) = _COUNT.unpack_from(self._memory, 4 + _COUNT.size * task)
        return int(number)

    def close(self) -> None:
        self._memory.close()


class _Running(NamedTuple):
    name: str
    call: Call[object]


class Running:
    """Loads that run beside the trial, in processes of their own."""

    def __init__(self, stack: ExitStack, loads: Mapping[str, Load]) -> None:
        """Prepare *loads*, and start their tasks, which *stack* ends."""
        self._loads = loads
        starting: list[tuple[str, Caller, Callable[[], Task]]] = []
        for name, load in loads.items():
            for directory in {load.place.beneath, load.place.twin}:
                directory.mkdir(exist_ok=True)
                directory.chmod(0o777)
            load.prepare()
            starting += [(name, caller, make) for caller, make in load.tasks()]
        self._board = _Board(len(starting))
        stack.callback(self._board.close)
        self._running = []
        for task, (name, caller, make) in enumerate(starting):
            call = caller.start(self._work(task, name, make), umask=0)
            self._running.append(_Running(name, stack.enter_context(call)))

    def _work(self, task: int, name: str, make: Callable[[], Task]) -> Callable[[], object]:
        """Return the function of a process: it repeats its step until the trial ends."""

        def work() -> object:
            steps = 0
            made = None
            try:
                made = make()
                while not self._board.over:
                    made.step()
                    self._board.count(task)
                    steps += 1
                return made.end()
            except Exception as error:
                last = getattr(made, "steps", "")
                cause = getattr(error, "sqlite_errorname", "")
                error.add_note(f"{name}, process {task}, step {steps} {cause}; the last:\n{last}")
                raise

        return work

    def ended(self) -> list[str]:
        """Return the names of the tasks that have ended, which only an error makes them do."""
        by_fd = {running.call.answer_fd: running.name for running in self._running}
        ready, _, _ = select.select(list(by_fd), [], [], 0)
        return [by_fd[fd] for fd in ready]

    def steps(self) -> dict[str, int]:
        """Return for each load the number of steps of its slowest task."""
        found: dict[str, int] = {}
        for task, running in enumerate(self._running):
            steps = self._board.steps(task)
            found[running.name] = min(steps, found.get(running.name, steps))
        return found

    def finish(self, limit_s: float) -> list[str]:
        """End all tasks, each within *limit_s*; return a line for each wrong result."""
        self._board.end()
        results: dict[str, list[object]] = {name: [] for name in self._loads}
        wrong = []
        for running in self._running:
            try:
                results[running.name].append(running.call.result(limit_s))
            except Exception as error:  # noqa: BLE001 - the other results must still be collected
                text = "\n".join([repr(error), *getattr(error, "__notes__", [])])
                wrong.append(f"{running.name}: {text}")
        failed = {line.partition(":")[0] for line in wrong}
        for name, load in self._loads.items():
            if name not in failed:
                wrong += [f"{name}: {line}" for line in load.wrong(results[name])]
        return wrong
