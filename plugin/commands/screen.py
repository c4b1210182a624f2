"""The live table of `passfs top` on a terminal; the terminal is restored at the end."""

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from plugin.commands.asking import CommandError
from plugin.commands.document import GAP, Table, shown
from plugin.commands.ranking import (
    NAME_WIDTH,
    Ranking,
    Sample,
    fitting,
    ranking,
    ranking_document,
    summary,
)
from plugin.commands.sampling import Sampler

_LOOK_S: Final = 0.5
"""How often the size of the terminal is looked at."""
_SIGNALED: Final = 128
"""The exit status after a signal is this plus the signal's number, as in a shell."""


def is_possible() -> bool:
    """Return whether standard output is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in {"", "dumb", "unknown"}


def follow(sampler: Sampler, interval_s: float, count: int | None) -> None:
    """Show samples until the user types q or Ctrl-C, or *count* times.

    While no plugin answers, wait for the next one.

    Raises:
        CommandError: no plugin answers at the beginning.
    """
    before, times = sampler.take(), 0
    with _opened() as screen:
        screen.show(ranking(None, before))
        while (count is None or times < count) and not screen.is_ended_within(interval_s):
            before = _show_next(screen, sampler, before)
            times += 1


def _show_next(screen: "_Screen", sampler: Sampler, before: Sample) -> Sample:
    """Show what a new sample has more than *before*; return the last sample that there is."""
    try:
        after = sampler.take()
    except CommandError as error:
        screen.warn(f"waiting: {error}")
        return before
    screen.show(ranking(before, after))
    return after


class _Screen:
    """A terminal that shows a ranking."""

    def __init__(self, live: Live, keys: int | None) -> None:
        """*keys* is the descriptor of the keyboard, if there is one."""
        self._live = live
        self._keys = keys
        self._shown = Ranking(measured_s=None, volumes=())
        self._warning = ""
        self._size = live.console.size

    def show(self, found: Ranking) -> None:
        """Show *found*, without a warning."""
        self._shown, self._warning = found, ""
        self._draw()

    def warn(self, text: str) -> None:
        """Show *text* above the last ranking."""
        self._warning = text
        self._draw()

    def is_ended_within(self, seconds: float) -> bool:
        """Wait so long; return True as soon as the user types q, or the terminal is gone."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            keys = [] if self._keys is None else [self._keys]
            if select.select(keys, [], [], min(left, _LOOK_S))[0]:
                typed = os.read(keys[0], 1024)
                if not typed or b"q" in typed.lower():
                    return True
            if self._live.console.size != self._size:
                self._draw()
        return False

    def _draw(self) -> None:
        self._size = width, height = self._live.console.size
        head = self._warning or f"{summary(self._shown)}{GAP}(q ends)"
        lines = [Text(shown(head), style="bold", no_wrap=True, overflow="ellipsis")]
        tables = [
            _drawn(fitting(block, width, height - 1))
            for block in ranking_document(self._shown)
            if isinstance(block, Table)
        ]
        self._live.update(Group(*lines, *tables), refresh=True)


def _drawn(table: Table) -> RichTable:
    drawn = RichTable(box=None, padding=(0, len(GAP), 0, 0), pad_edge=False)
    for number, column in enumerate(table.columns):
        most = None if number else NAME_WIDTH
        drawn.add_column(Text(column), no_wrap=True, overflow="ellipsis", max_width=most)
    for row in table.rows:
        drawn.add_row(*(Text(shown(cell)) for cell in row))
    return drawn


@contextmanager
def _opened() -> Iterator[_Screen]:
    """Take the terminal, and give it back; SIGTERM and SIGHUP end the block, too."""
    console = Console(highlight=False, markup=False)
    live = Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop")
    with _ended_by(signal.SIGTERM, signal.SIGHUP), _keyboard() as keys, live:
        yield _Screen(live, keys)


@contextmanager
def _ended_by(*numbers: signal.Signals) -> Iterator[None]:
    """Leave the block by SystemExit if a signal comes."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(_SIGNALED + number)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _keyboard() -> Iterator[int | None]:
    """Have the terminal pass on each key at once; yield its descriptor, None without a terminal.

    Ctrl-Z does nothing, because a shell would find the terminal changed.
    """
    if not sys.stdin.isatty():
        yield None
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        own = termios.tcgetattr(fd)
        own[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(fd, termios.TCSANOW, own)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
