"""The results as a drawing: SVG, a row for each line and a mark for each subject.

The horizontal axis is the time over the bare directory's, on a logarithmic scale. A thin bar
through a mark reaches from the fastest round to the slowest.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from benchmarks.plan import BARE
from benchmarks.report import GROUPS, LineResults, Report
from benchmarks.table import ratio

# passfs and its peers differ by the shape of the mark too, for print and for the colour-blind.
_OWN: Final = ("#0b5fb0", "#5aa9e6", "#1b9e9e", "#7a5fb8")
_PEERS: Final = ("#d9730d", "#e8a35c", "#8c8c8c", "#b03a5b", "#d48aa0", "#6b8e23")
_INK, _FAINT, _GRID, _PAPER = "#1f2933", "#66727f", "#e3e7eb", "#ffffff"
_BAND: Final = "#f5f7f9"

_WIDTH, _LEFT, _RIGHT = 860, 200, 96
_ROW, _TITLE, _HEAD, _FOOT = 24, 34, 92, 58
_RADIUS: Final = 5.5
_MEAN: Final = "geometric mean"
_STEPS: Final = (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

Mark = tuple[float, float, float]
"""Median, fastest and slowest round, each over the bare directory's median."""


def picture(report: Report) -> str:
    """Return the drawing as SVG text."""
    rows = list(_rows(report))
    height = _HEAD + sum(_ROW if of else _TITLE for _, of in rows) + _FOOT
    scale = _Scale(report)
    parts = [*_header(report), *_bands(rows), *_grid(scale, _HEAD, height - _FOOT)]
    top = float(_HEAD)
    for name, of in rows:
        if of:
            parts += _row(report, scale, name, of, top + _ROW / 2)
            top += _ROW
        else:
            parts.append(_text(20, top + _TITLE - 10, name, weight="600"))
            top += _TITLE
    parts += _footer(report, height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}"'
        f' width="{_WIDTH}" height="{height:g}" font-family="DejaVu Sans, Verdana, sans-serif"'
        f' font-size="12">\n<rect width="100%" height="100%" rx="8" fill="{_PAPER}"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


class _Scale:
    """The horizontal position of a ratio."""

    def __init__(self, report: Report) -> None:
        ratios = [value for line in report.lines for _, mark in _marks(line) for value in mark]
        self.low = max((s for s in _STEPS if s <= min(ratios, default=1)), default=_STEPS[0])
        self.high = min((s for s in _STEPS if s >= max(ratios, default=1)), default=_STEPS[-1])
        self.low = min(self.low, 0.5)
        self.high = max(self.high, 2)

    def __call__(self, value: float) -> float:
        bounded = min(max(value, self.low), self.high)
        part = math.log(bounded / self.low) / math.log(self.high / self.low)
        return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)

    def steps(self) -> Iterator[float]:
        """Return the ratios with a vertical grid line."""
        return (step for step in _STEPS if self.low <= step <= self.high)


def _rows(report: Report) -> Iterator[tuple[str, dict[str, Mark]]]:
    """Yield a title without marks, or a line's name with the marks of each subject."""
    for group, title in GROUPS.items():
        lines = [line for line in report.lines if line.group == group]
        if lines:
            yield title, {}
        for line in lines:
            yield line.name, dict(_marks(line))
        if lines and (means := report.means.get(group)):
            mean = {name: over[BARE] for name, over in means.items() if BARE in over}
            yield _MEAN, {name: (value, value, value) for name, value in mean.items()}


def _marks(line: LineResults) -> Iterator[tuple[str, Mark]]:
    """Yield the name and the mark of each subject but the bare directory."""
    bare = line.of[BARE].median_s
    for name, figures in line.of.items():
        if name != BARE and bare and figures.median_s is not None:
            seconds = [sample.seconds for sample in figures.samples]
            yield name, (figures.median_s / bare, min(seconds) / bare, max(seconds) / bare)


def _style(report: Report, name: str) -> tuple[str, bool]:
    """Return the colour of a subject, and whether it is passfs."""
    own, peers = list(report.plan.passfs), list(report.plan.peers)
    if name in own:
        return _OWN[own.index(name) % len(_OWN)], True
    return _PEERS[peers.index(name) % len(_PEERS)], False


def _header(report: Report) -> Iterator[str]:
    yield _text(20, 32, "Time as a multiple of the bare directory's", size=17, weight="600")
    yield _text(20, 51, "left is faster; the scale is logarithmic", colour=_FAINT)
    x = 24.0
    for name in report.subjects[1:]:
        yield _mark(report, name, x, 70)
        yield _text(x + 12, 74, name)
        x += 34 + 7.5 * len(name)


def _grid(scale: _Scale, top: float, bottom: float) -> Iterator[str]:
    for step in scale.steps():
        x = scale(step)
        colour, width = (_INK, 1.2) if step == 1 else (_GRID, 1)
        yield (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top + 8:g}" y2="{bottom:g}" stroke="{colour}"'
            f' stroke-width="{width}"/>'
        )
        for y in (top + 2, bottom + 15):
            yield _text(x, y, f"{step:g}×", colour=_FAINT, size=11, anchor="middle")


def _bands(rows: Sequence[tuple[str, dict[str, Mark]]]) -> Iterator[str]:
    """Yield a band behind every second row, which connects a name with its marks."""
    top = _HEAD
    for index, (_, of) in enumerate(rows):
        if of and index % 2 == 0:
            yield (f'<rect x="12" y="{top}" width="{_WIDTH - 24}" height="{_ROW}" fill="{_BAND}"/>')
        top += _ROW if of else _TITLE


def _row(
    report: Report, scale: _Scale, name: str, of: dict[str, Mark], middle: float
) -> Iterator[str]:
    weight = "600" if name == _MEAN else "400"
    yield _text(32, middle + 4, name, weight=weight)
    for subject, (_, fastest, slowest) in of.items():
        colour, _own = _style(report, subject)
        yield (
            f'<line x1="{scale(fastest):.1f}" x2="{scale(slowest):.1f}" y1="{middle:g}"'
            f' y2="{middle:g}" stroke="{colour}" stroke-width="2" stroke-opacity="0.45"/>'
        )
    # passfs comes last, so that its marks lie on top.
    for subject in sorted(of, key=lambda subject: _style(report, subject)[1]):
        yield _mark(report, subject, scale(of[subject][0]), middle)
    # The number at the right edge is the ratio of the first passfs.
    first = next((subject for subject in report.plan.passfs if subject in of), None)
    if first is not None:
        colour, _own = _style(report, first)
        right, text = _WIDTH - 22, ratio(of[first][0])
        yield _text(right, middle + 4, text, colour=colour, anchor="end", weight=weight)


def _mark(report: Report, name: str, x: float, y: float) -> str:
    """Return a disc for passfs, a diamond for a peer."""
    colour, own = _style(report, name)
    if own:
        return f'<circle cx="{x:.1f}" cy="{y:g}" r="{_RADIUS}" fill="{colour}" stroke="{_PAPER}"/>'
    corners = ((x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y))
    points = " ".join(f"{a:.1f},{b:g}" for a, b in corners)
    return f'<polygon points="{points}" fill="{colour}" stroke="{_PAPER}"/>'


def _footer(report: Report, height: float) -> Iterator[str]:
    facts, plan = report.machine, report.plan
    first = f"Linux {facts['kernel']}, {facts['processors']} × {facts['processor']}"
    load = f"{plan.busy} spinning on each processor" if plan.busy else "no load added"
    second = f"{load}; median of {plan.rounds} rounds, bar: fastest to slowest; {report.taken[:10]}"
    yield _text(20, height - 26, first, colour=_FAINT, size=11)
    yield _text(20, height - 10, second, colour=_FAINT, size=11)


def _text(
    x: float,
    y: float,
    text: str,
    *,
    colour: str = _INK,
    size: int = 12,
    weight: str = "400",
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:g}" fill="{colour}" font-size="{size}" font-weight="{weight}"'
        f' text-anchor="{anchor}">{escape(text)}</text>'
    )
