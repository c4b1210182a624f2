"""A trial: loads work in a volume, and its worker is killed again and again (killing.py).

No load may see an error. After the rounds, all results are compared with the host's files. Then the
files are removed, and the volume must have as many inodes, open files, locks, descriptors and
guards as at the start.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack

from tests.fuzz import tree
from tests.soak.resources import locked
from tests.standby.killing import LIMIT_S, Killing, Round
from tests.standby.load import Load, Running
from tests.standby.volume import TakeOverError, Volume

REMEMBERED_ROUNDS = 5


class Trial:
    """The rounds of one volume."""

    def __init__(self, volume: Volume, loads: Mapping[str, Load], seed: str) -> None:
        self.steps: Mapping[str, int] = {}
        self._volume = volume
        self._loads = loads
        self._killing = Killing(volume, seed, lambda: os.statvfs(volume.served.mountpoint))
        self._rounds: list[Round] = []

    @property
    def done(self) -> Mapping[str, int]:
        """What was killed -> how often."""
        return self._killing.done

    def run(self, rounds: int) -> list[str]:
        """Run all loads and *rounds*; return a line for each error."""
        volume = self._volume
        before = volume.settled()
        with ExitStack() as stack, volume.served.limited(LIMIT_S):
            running = Running(stack, self._loads)
            wrong = self._kill_often(running, rounds)
            with volume.served.limited(2 * LIMIT_S):
                wrong += running.finish(LIMIT_S)
            self.steps = running.steps()
        try:
            wrong += [f"still locked: {path}" for path in locked(volume.served.source)]
            with volume.served.limited(LIMIT_S):
                tree.empty(bytes(volume.served.source))
                wrong += [f"left: {line}" for line in volume.settled(before).differences(before)]
        except OSError as error:
            wrong.append(f"at the end: {error!r}")
        return wrong

    def _kill_often(self, running: Running, rounds: int) -> list[str]:
        """Do the rounds, up to the first error."""
        for number in range(rounds):
            self._rounds.append(self._killing.draw())
            try:
                with self._volume.served.limited(LIMIT_S):
                    self._killing.do(self._rounds[-1])
            except (OSError, TakeOverError) as error:
                return [f"{error!r}, {self._last(number)}"]
            if ended := running.ended():
                return [f"{', '.join(ended)} ended, {self._last(number)}"]
        return []

    def _last(self, number: int) -> str:
        last = "\n".join(map(str, self._rounds[-REMEMBERED_ROUNDS:]))
        return f"round {number}; the last rounds:\n{last}"
