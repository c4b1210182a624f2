"""The results: samples, medians, ratios.

A sample is the result of one round for one line: seconds for each operation. The value of a line is
the median of its samples. A ratio is one of medians. A spread is the median distance of the samples
from their median, relative to that median: half of the rounds lie closer.
"""

from collections.abc import Iterable
from statistics import geometric_mean, median

import msgspec

from benchmarks.plan import BARE, Plan

GROUPS = {"metadata": "Names and attributes", "data": "Contents", "work": "Real work"}


class Sample(msgspec.Struct, frozen=True):
    """The result of one round, for each operation."""

    seconds: float
    cpu_seconds: float
    """Processor time of the processes that serve the mount, waiting excluded."""
    requests: float | None = None
    """Requests of the kernel, FORGET excluded; none if they were not counted."""
    user_seconds: float = 0
    system_seconds: float = 0
    """The parts of the processor time, with a resolution of 10 ms for all operations together."""


class Figures(msgspec.Struct, kw_only=True):
    """The results of one subject for one line."""

    samples: list[Sample] = []
    failure: str = ""
    """The cause, if there are fewer samples than rounds."""
    median_s: float | None = None
    spread: float | None = None
    cpu_s: float | None = None
    requests: float | None = None
    ratio: dict[str, float] = {}
    """The median over that of each other subject: below 1 is faster."""


class LineResults(msgspec.Struct, kw_only=True):
    """One line, with the results of every subject."""

    name: str
    group: str
    operation: str
    """The unit that is counted: the medians are seconds for each."""
    of: dict[str, Figures]


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """One figure that belongs to no line."""

    value: float
    count: int
    """The number of requests or samples behind the value."""
    user: float | None = None
    system: float | None = None


class Cost(msgspec.Struct, kw_only=True):
    """One cost of a volume or a request, for each subject that was measured."""

    name: str
    unit: str
    of: dict[str, Amount]
    failures: dict[str, str] = {}
    """The cause for each subject without an amount."""


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """The sums of one subject's medians over all lines of real work."""

    seconds: float
    cpu_s: float
    user_share: float
    """The part of the processor time that is user time, from all samples."""
    requests: float | None

    @property
    def request_s(self) -> float | None:
        """Return the processor time of one request."""
        return self.cpu_s / self.requests if self.requests else None


class Report(msgspec.Struct, kw_only=True):
    """The results of a run."""

    taken: str
    """Time of the run, RFC 3339."""
    duration_s: float
    plan: Plan
    machine: dict[str, str | int | float | list[float]]
    versions: dict[str, str]
    lines: list[LineResults]
    means: dict[str, dict[str, dict[str, float]]] = {}
    """Geometric means of the ratios: group, subject, the other subject."""
    totals: dict[str, Total] = {}
    """Real work in all, for each subject that has a figure on each line."""
    costs: list[Cost] = []

    @property
    def subjects(self) -> list[str]:
        """Return the names of all subjects, the bare directory first."""
        return [BARE, *self.plan.passfs, *self.plan.peers]

    @property
    def failures(self) -> list[str]:
        """Return a sentence for each figure that is missing, in one round or in all."""
        of_lines = [
            f"{name}: {line.name}: {figures.failure}"
            for line in self.lines
            for name, figures in line.of.items()
            if figures.failure
        ]
        return of_lines + [
            f"{name}: {cost.name}: {failure}"
            for cost in self.costs
            for name, failure in cost.failures.items()
        ]


def conclude(report: Report) -> None:
    """Compute medians, spreads, ratios and means from the samples."""
    for line in report.lines:
        for figures in line.of.values():
            _summarize(figures)
        for figures in line.of.values():
            figures.ratio = {
                other: figures.median_s / than.median_s
                for other, than in line.of.items()
                if figures.median_s is not None and than.median_s and than is not figures
            }
    for group in GROUPS:
        lines = [line for line in report.lines if line.group == group]
        if lines:
            report.means[group] = {
                name: {
                    other: mean
                    for other in report.subjects
                    if other != name and (mean := _mean(lines, name, other)) is not None
                }
                for name in report.subjects
            }
    work = [line for line in report.lines if line.group == "work"]
    report.totals = {
        name: total
        for name in report.subjects
        if work and (total := _total([line.of[name] for line in work])) is not None
    }


def _total(lines: list[Figures]) -> Total | None:
    """Return the sums; none if a line has no figure, which would flatter a failure."""
    if not all(figures.samples for figures in lines):
        return None
    samples = [sample for figures in lines for sample in figures.samples]
    user, system = sum(s.user_seconds for s in samples), sum(s.system_seconds for s in samples)
    counts = [figures.requests for figures in lines if figures.requests is not None]
    return Total(
        seconds=sum(figures.median_s or 0 for figures in lines),
        cpu_s=sum(figures.cpu_s or 0 for figures in lines),
        user_share=user / (user + system) if user + system else 0,
        requests=sum(counts) if len(counts) == len(lines) else None,
    )


def _summarize(figures: Figures) -> None:
    if not figures.samples:
        return
    seconds = [sample.seconds for sample in figures.samples]
    figures.median_s = median(seconds)
    figures.spread = median(abs(s - figures.median_s) for s in seconds) / figures.median_s
    figures.cpu_s = median(sample.cpu_seconds for sample in figures.samples)
    counts = [sample.requests for sample in figures.samples if sample.requests is not None]
    figures.requests = median(counts) if len(counts) == len(seconds) else None


def _mean(lines: Iterable[LineResults], name: str, other: str) -> float | None:
    """Return the mean of all ratios; none if one is missing, which would flatter a failure."""
    ratios = [line.of[name].ratio.get(other) for line in lines]
    present = [ratio for ratio in ratios if ratio is not None]
    return geometric_mean(present) if len(present) == len(ratios) else None
