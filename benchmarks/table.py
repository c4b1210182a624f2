"""The results as text in rows, for the terminal and for Markdown."""

from typing import NamedTuple

from benchmarks.plan import BARE
from benchmarks.report import GROUPS, Cost, Figures, LineResults, Report

_SCALES = ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "µs"))
_NOTHING = "–"
# Fewer requests than this for each operation are those of a line's beginning and end.
_FEW = 0.05


class Table(NamedTuple):
    """A title, a legend, the heads of the columns, and rows of as many cells, some of them bold."""

    title: str
    note: str
    heads: list[str]
    rows: list[list[str]]
    bold: frozenset[int] = frozenset()


def tables(report: Report) -> list[Table]:
    """Return all tables of *report*."""
    return [
        *(t for group in GROUPS for t in _group(report, group)),
        *([_totals(report)] if report.totals.keys() - {BARE} else []),
        *([_means(report)] if report.means else []),
        *([_costs(report)] if report.costs else []),
    ]


def summary(report: Report) -> str:
    """Return one line about the machine, the run and the options of the subjects."""
    facts, plan = report.machine, report.plan
    busy = f"{plan.busy} spinning on each" if plan.busy else "not loaded on purpose"
    options = ", ".join(f"{name}: {_options(given.options)}" for name, given in plan.passfs.items())
    return (
        f"Linux {facts['kernel']}, {facts['processors']} × {facts['processor']}, {busy}; processors"
        f" idle before the run {_share(facts['idle_before'])} of the time, during it"
        f" {_share(facts['idle_during'])}, stolen from it {_share(facts.get('stolen_during'))};"
        f" load {_load(facts, 'load_before')} before and {_load(facts, 'load_after')} at the end."
        f" {plan.rounds} rounds, size {plan.size:g}, source on"
        f" {'tmpfs' if plan.on_tmpfs else 'a directory given'}, {report.taken}. {options}."
    )


def _options(given: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in given.items())


def _share(fact: object) -> str:
    return f"{fact:.0%}" if isinstance(fact, float) else "unknown"


def _load(facts: dict[str, str | int | float | list[float]], name: str) -> str:
    """Return the mean load of the last minute, getloadavg(3)."""
    given = facts.get(name)
    return f"{given[0]:.1f}" if isinstance(given, list) else "unknown"


def duration(seconds: float) -> str:
    """Return *seconds* with three digits, in s, ms or µs."""
    factor, unit = next((f, u) for least, f, u in _SCALES if seconds >= least)
    return f"{_digits(seconds * factor)} {unit}"


def ratio(value: float) -> str:
    """Return *value* with three digits and the sign of a multiple."""
    return f"{_digits(value)}×"


def number(value: float) -> str:
    """Return a count; with three digits if it is less than 100."""
    return f"{value:,.0f}" if value >= 100 else _digits(value)  # noqa: PLR2004


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004


def _group(report: Report, group: str) -> list[Table]:
    lines = [line for line in report.lines if line.group == group]
    if not lines:
        return []
    times = Table(
        GROUPS[group],
        "median time; ratio to the bare directory's; spread of the samples",
        ["line", "for each", *report.subjects],
        [
            [line.name, line.operation, *(_time(line.of[name]) for name in report.subjects)]
            for line in lines
        ],
    )
    serving = report.subjects[1:]
    processor = Table(
        f"{GROUPS[group]}: processor time of the serving processes",
        "median for each operation",
        ["line", "for each", *serving],
        [[line.name, line.operation, *(_cpu(line.of[n]) for n in serving)] for line in lines],
    )
    if not serving:
        return [times, *_against(report, group, lines)]
    return [times, *_against(report, group, lines), processor, *_counts(report, group, lines)]


def _counts(report: Report, group: str, lines: list[LineResults]) -> list[Table]:
    """Return the requests of each line, and the processor time of one, if they were counted."""
    serving = report.subjects[1:]
    if all(line.of[name].requests is None for line in lines for name in serving):
        return []
    rows = [
        [line.name, line.operation, *(_requests(line.of[n]) for n in serving)] for line in lines
    ]
    title = f"{GROUPS[group]}: requests, and the processor time of each"
    note = "requests of the kernel for each operation, FORGET excluded; medians"
    return [Table(title, note, ["line", "for each", *serving], rows)]


def _against(report: Report, group: str, lines: list[LineResults]) -> list[Table]:
    """Return the time of each passfs over that of each other subject."""
    pairs = [
        (name, other)
        for name in report.plan.passfs
        for other in report.subjects
        if other not in {name, BARE}
    ]
    if not pairs:
        return []
    return [
        Table(
            f"{GROUPS[group]}: each passfs over the other subjects",
            "ratio of the times: below 1 means that the first is faster",
            ["line", *(f"{name} / {other}" for name, other in pairs)],
            [
                [line.name, *(_optional(line.of[a].ratio.get(b)) for a, b in pairs)]
                for line in lines
            ],
        )
    ]


def _totals(report: Report) -> Table:
    """Return the processor time of each subject over all lines of real work."""
    names = [name for name in report.subjects[1:] if name in report.totals]
    others = [name for name in names if report.totals[name].cpu_s]
    rows = []
    for name in names:
        total = report.totals[name]
        user = total.cpu_s * total.user_share
        each = total.request_s
        rows.append(
            [
                name,
                _NOTHING if total.requests is None else number(total.requests),
                f"{duration(total.cpu_s)} ({_digits(user)} + {_digits(total.cpu_s - user)})",
                _NOTHING if each is None else duration(each),
                *(ratio(total.cpu_s / report.totals[other].cpu_s) for other in others),
            ]
        )
    heads = ["", "requests", "processor time", "of each request", *(f"over {n}" for n in others)]
    note = (
        "sums of the medians of all lines; processor time of the serving processes (user + system),"
        " and its ratios: below 1 means that the first needs less"
    )
    return Table("Real work in all: processor time", note, heads, rows)


def _means(report: Report) -> Table:
    """Return the geometric means of the ratios to each subject."""
    rows = [
        [
            f"{name}, {GROUPS[group].lower()}",
            *(_optional(report.means[group][name].get(other)) for other in report.subjects),
        ]
        for group in report.means
        for name in report.subjects[1:]
    ]
    real = frozenset(
        index for index, row in enumerate(rows) if row[0].endswith(GROUPS["work"].lower())
    )
    heads = ["geometric mean of", *(f"over {name}" for name in report.subjects)]
    note = "geometric means of the ratios of the times: below 1 means that the first is faster"
    return Table("All lines together", note, heads, rows, real)


def _costs(report: Report) -> Table:
    names = [*report.plan.passfs, *report.plan.peers]
    rows = [
        [cost.name, cost.unit, *(_amount(cost, name) for name in names)] for cost in report.costs
    ]
    note = "processor time of a request (user + system), memory of a volume, time of Mount: medians"
    return Table("Costs of a request and of a volume", note, ["", "unit", *names], rows)


def _time(figures: Figures) -> str:
    if figures.median_s is None:
        return "fails"
    over = f" {ratio(figures.ratio[BARE])}" if BARE in figures.ratio else ""
    failed = " fails at times" if figures.failure else ""
    return f"{duration(figures.median_s)}{over} ±{figures.spread or 0:.0%}{failed}"


def _cpu(figures: Figures) -> str:
    return _NOTHING if figures.cpu_s is None else duration(figures.cpu_s)


def _requests(figures: Figures) -> str:
    if figures.requests is None or figures.cpu_s is None:
        return _NOTHING
    if figures.requests < _FEW:
        return "0"
    return f"{number(figures.requests)} of {duration(figures.cpu_s / figures.requests)}"


def _optional(value: float | None) -> str:
    return _NOTHING if value is None else ratio(value)


def _amount(cost: Cost, name: str) -> str:
    amount = cost.of.get(name)
    if amount is None:
        return "fails" if name in cost.failures else _NOTHING
    parts = ""
    if amount.user is not None and amount.system is not None:
        parts = f" ({_digits(amount.user)} + {_digits(amount.system)})"
    return _digits(amount.value) + parts
