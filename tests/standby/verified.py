"""fio(1) in verify mode, again and again: it compares the checksum of each block that it reads."""

from collections.abc import Callable, Sequence

from tests.soak import fio
from tests.standby.load import Load, Task
from tests.support.tools.callers import ROOT, Caller


class Verified(Load):
    """One fio, with the jobs of the soak test."""

    SHORT = False

    def tasks(self) -> Sequence[tuple[Caller, Callable[[], Task]]]:
        """Return the process that starts fio, as a user."""
        return [(ROOT, lambda: _Fio(self))]

    def wrong(self, results: Sequence[object]) -> list[str]:
        """Have fio verify the last files once more, on both sides."""
        found = []
        for side in {self.place.seen, self.place.beneath}:
            for seed in results:
                try:
                    fio.run(self.caller(0), side, int(str(seed)), only_verify=True)
                except AssertionError as error:
                    found.append(str(error))
        return found


class _Fio:
    def __init__(self, load: Verified) -> None:
        self.steps = load.steps(0)
        self._caller = load.caller(0)
        self._directory = load.place.seen
        self._seed = 0

    def step(self) -> None:
        """Write and verify all files once."""
        self._seed = self.steps.rng.randrange(1 << 31)
        self.steps.note("seed", self._seed)
        fio.run(self._caller, self._directory, self._seed)

    def end(self) -> int:
        """Return the seed of the last files."""
        if not self._seed:
            self.step()
        return self._seed
