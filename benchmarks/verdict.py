"""The results in plain words: where each passfs is ahead of the others, and where not.

The modes of one program count as one opponent: its better mode is the one that is faster in the
geometric mean of a group of lines.
"""

from collections.abc import Iterator

from benchmarks.plan import BARE, program
from benchmarks.report import GROUPS, LineResults, Report
from benchmarks.table import duration, number, ratio

NAMED = 1.2
"""A line that takes more than this multiple of an opponent's time is named."""
_LEVEL = 0.03


def sentences(report: Report) -> list[str]:
    """Return a paragraph for each passfs, opponent and group of lines, then processor time."""
    return [
        *(
            paragraph
            for own in report.plan.passfs
            for group in report.means
            for opponent, modes in _opponents(report, own).items()
            if (paragraph := _group(report, group, own, opponent, modes))
        ),
        *(
            paragraph
            for own in report.plan.passfs
            for opponent, modes in _opponents(report, own).items()
            if (paragraph := _processor(report, own, opponent, modes))
        ),
    ]


def _opponents(report: Report, own: str) -> dict[str, list[str]]:
    """Return the programs that *own* is compared with, each with the subjects of its modes."""
    found: dict[str, list[str]] = {}
    for name in report.subjects:
        if name not in {own, BARE}:
            found.setdefault(program(name), []).append(name)
    return found


def _group(report: Report, group: str, own: str, opponent: str, modes: list[str]) -> str:
    means = report.means[group].get(own, {})
    ratios = {mode: means[mode] for mode in modes if mode in means}
    if not ratios:
        return ""
    better = max(ratios, key=lambda mode: ratios[mode])
    lines = [line for line in report.lines if line.group == group]
    of_each = {line.name: _over(line, own, better) for line in lines}
    ahead = [name for name, value in of_each.items() if value < 1]
    slow = sorted(
        ((name, value) for name, value in of_each.items() if value > NAMED),
        key=lambda pair: -pair[1],
    )
    return (
        f"{GROUPS[group]}, {own} and {_mode(opponent, better, modes)}:"
        f" {ratio(ratios[better])} of its time, {_place(ratios[better])};"
        f" faster on {len(ahead)} of {len(lines)} lines."
        + (f" Above {ratio(NAMED)}: {', '.join(_named(slow))}." if slow else "")
    )


def _over(line: LineResults, own: str, other: str) -> float:
    return line.of[own].ratio[other]


def _named(slow: list[tuple[str, float]]) -> Iterator[str]:
    return (f"{name} ({ratio(value)})" for name, value in slow)


def _processor(report: Report, own: str, opponent: str, modes: list[str]) -> str:
    """Compare the processor time of real work in all with that of the cheapest mode."""
    total = report.totals.get(own)
    totals = {mode: report.totals[mode] for mode in modes if mode in report.totals}
    if total is None or not totals:
        return ""
    cheapest = min(totals, key=lambda mode: totals[mode].cpu_s)
    if not totals[cheapest].cpu_s:
        return ""
    over = total.cpu_s / totals[cheapest].cpu_s
    return (
        f"Processor time of real work, {own} and {_mode(opponent, cheapest, modes)}:"
        f" {_spent(report, own)} against {_spent(report, cheapest)};"
        f" {ratio(over)} in all, {_place(over)}."
    )


def _spent(report: Report, name: str) -> str:
    total = report.totals[name]
    if total.requests is None or total.request_s is None:
        return duration(total.cpu_s)
    of_each = f"{number(total.requests)} requests of {duration(total.request_s)}"
    return f"{duration(total.cpu_s)} ({of_each})"


def _mode(opponent: str, mode: str, modes: list[str]) -> str:
    if len(modes) == 1:
        return mode
    best = "its default" if mode == opponent else mode.partition("/")[2]
    return f"{opponent} ({best}, the better of {len(modes)} modes)"


def _place(over: float) -> str:
    return "level" if abs(over - 1) < _LEVEL else "ahead" if over < 1 else "behind"
