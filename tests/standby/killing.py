"""Rounds of killing: each kills the worker of a volume at a random moment.

Some rounds kill the worker again while the next one takes over, and some kill a guard before,
beside or in place of the worker. Each waits until the worker and both guards are there again.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from tests.standby.volume import POLL_S, TakeOverError, is_alive, kill

LIMIT_S = 60.0
LONGEST_PAUSE_S = 0.3
SHORT_PAUSE_S = 0.012

KINDS: Mapping[str, int] = {
    "worker": 10,
    "worker, and the next one": 4,
    "a guard": 1,
    "a guard, then the worker": 2,
    "the worker, then a guard": 2,
    "the worker and a guard at once": 2,
}
"""Kind of a round -> its weight in the random choice."""


class Round(NamedTuple):
    """A round: its kind, and the pauses before it and within it, in seconds."""

    kind: str
    pause_s: float
    within_s: float


def draw(rng: random.Random) -> Round:
    """Return a random round."""
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    pause = rng.random() * rng.choice((LONGEST_PAUSE_S, SHORT_PAUSE_S))
    return Round(kind, pause, rng.random() * SHORT_PAUSE_S)


class Whole(Protocol):
    """The process ids of a volume that has all its processes."""

    @property
    def worker_pid(self) -> int:
        """The worker."""

    @property
    def guard_pids(self) -> Sequence[int]:
        """The guards."""


class Processes(Protocol):
    """The processes of a volume, by their ids on this host."""

    def whole(self) -> Whole:
        """Wait for a worker that serves, and for both guards; raise TakeOverError at a limit."""

    def worker(self) -> int:
        """Return the worker, or the last one, or 0."""


class Killing:
    """The rounds of one volume; `done` counts the kills."""

    def __init__(self, processes: Processes, seed: str, asked: Callable[[], object]) -> None:
        """Draw by *seed*; *asked* sends a request to the volume, which a worker answers."""
        self.done: Counter[str] = Counter()
        """What was killed -> how often."""
        self._processes = processes
        self._rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
        self._asked = asked
        self._killed: list[int] = []

    @property
    def deaths(self) -> int:
        """The number of workers killed."""
        return self.done["workers"] + self.done["workers again"]

    def draw(self) -> Round:
        """Return the next round."""
        return draw(self._rng)

    def do(self, this: Round) -> None:
        """Do one round, and wait until the worker and both guards are there again."""
        state = self._processes.whole()
        time.sleep(this.pause_s)
        guard = self._rng.choice(state.guard_pids)
        match this.kind:
            case "worker":
                self._kill(state.worker_pid, "workers")
            case "worker, and the next one":
                self._kill(state.worker_pid, "workers")
                self._kill(self._next_after(state.worker_pid, this.within_s), "workers again")
            case "a guard":
                self._kill(guard, "guards")
            case "a guard, then the worker":
                self._kill(guard, "guards")
                time.sleep(this.within_s)
                self._kill(state.worker_pid, "workers")
            case "the worker, then a guard":
                self._kill(state.worker_pid, "workers")
                time.sleep(this.within_s)
                self._kill(guard, "guards")
            case _:
                for pid, what in self._shuffled((state.worker_pid, "workers"), (guard, "guards")):
                    self._kill(pid, what)
        self._asked()
        self._await_deaths()
        self._processes.whole()

    def _shuffled(self, *both: tuple[int, str]) -> list[tuple[int, str]]:
        return self._rng.sample(both, len(both))

    def _kill(self, pid: int, what: str) -> None:
        self.done[what] += kill(pid)
        self._killed.append(pid)

    def _await_deaths(self) -> None:
        """Wait until all that were killed are dead: two guards must not die at once."""
        limit = time.monotonic() + LIMIT_S
        while any(map(is_alive, self._killed)):
            if time.monotonic() > limit:
                raise TakeOverError(f"{self._killed} do not end")
            time.sleep(POLL_S)
        self._killed.clear()

    def _next_after(self, pid: int, pause_s: float) -> int:
        """Return the worker after *pid*, *pause_s* after it is there."""
        limit = time.monotonic() + LIMIT_S
        while (found := self._processes.worker()) == pid or not is_alive(found):
            if time.monotonic() > limit:
                raise TakeOverError(f"no worker after {pid}")
        time.sleep(pause_s)
        return found
