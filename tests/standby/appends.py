"""A log to which four processes append: each line once, in the order of its writer."""

import os
import re
from collections.abc import Callable, Sequence
from functools import partial

from tests.soak.model import WrongError, expect
from tests.standby.load import Load, Task
from tests.support.tools.callers import Caller

WRITERS = 4
LOG = "log"
SHOWN = 10
LONGEST = 6_000
REOPENED = 0.1
_LINE = re.compile(rb"(\d) (\d+) (\.*)!")


def append(fd: int, data: bytes) -> int:
    """Append *data*; return the number of bytes appended."""
    return os.write(fd, data)


class Appends(Load):
    """The writers of the log."""

    def prepare(self) -> None:
        """Make the log, which all users may write."""
        path = self.place.beneath / LOG
        path.touch()
        path.chmod(0o666)

    def tasks(self) -> Sequence[tuple[Caller, Callable[[], Task]]]:
        """Return the writers."""
        return [(self.caller(n), partial(_Writer, self, n)) for n in range(WRITERS)]

    def wrong(self, results: Sequence[object]) -> list[str]:
        """Read the log on both sides, and compare it with the numbers of lines."""
        found = []
        for side in {self.place.seen, self.place.beneath}:
            lines = (side / LOG).read_bytes().split(b"\n")
            try:
                expect("the end of the log", lines.pop(), b"")
                _check(lines, results)
            except WrongError as error:
                found.append(f"{side}: {error}")
        return found


class _Writer:
    def __init__(self, load: Appends, number: int) -> None:
        self.steps = load.steps(number)
        self._path = str(load.place.seen / LOG)
        self._number = number
        self._written = 0
        self._fd = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND)

    def step(self) -> None:
        """Append a line, perhaps by a new open file."""
        rng = self.steps.rng
        if rng.random() < REOPENED:
            os.close(self._fd)
            self._fd = self._open()
        dots = b"." * rng.randrange(rng.choice((10, 200, LONGEST)))
        line = b"%d %d %s!\n" % (self._number, self._written, dots)
        self.steps.note("append", self._written, len(line))
        expect("appended", append(self._fd, line), len(line))
        self._written += 1

    def end(self) -> int:
        """Return the number of lines written."""
        os.close(self._fd)
        return self._written


def _check(lines: Sequence[bytes], written: Sequence[object]) -> None:
    """Check that each line is whole, and that those of each writer are complete, in order."""
    numbers: dict[int, list[int]] = {writer: [] for writer in range(WRITERS)}
    for place, line in enumerate(lines):
        match = _LINE.fullmatch(line)
        if match is None:
            raise WrongError(f"line {place} is torn: {line[:100]!r}")
        numbers[int(match[1])].append(int(match[2]))
    for writer, number in enumerate(written):
        right = list(range(int(str(number))))
        if numbers[writer] != right:
            odd = [n for n in set(right) | set(numbers[writer]) if numbers[writer].count(n) != 1]
            raise WrongError(
                f"writer {writer} wrote {number} lines, and {len(numbers[writer])} are there;"
                f" missing, or there several times: {sorted(odd)[:SHOWN]}"
            )
