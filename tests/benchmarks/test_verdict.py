"""The results in plain words."""

import msgspec
import pytest

from benchmarks import markdown, table, verdict
from benchmarks.plan import Passfs, Peer, Plan
from benchmarks.report import Figures, LineResults, Report, Sample, conclude

PEERS = ("theirs", "theirs/single", "third")


def samples(*seconds: float, requests: float | None = None) -> Figures:
    """Return figures with a tenth of the time as processor time, a fifth of it in user mode."""
    return Figures(
        samples=[Sample(s, s / 10, requests, s / 50, s * 4 / 50) for s in seconds],
    )


def line(name: str, group: str, **seconds: float) -> LineResults:
    """Return a line with one sample for each subject, in which `_` stands for a slash."""
    figures = {
        subject.replace("_", "/"): samples(value, requests=None if subject == "bare" else 1000)
        for subject, value in seconds.items()
    }
    return LineResults(name=name, group=group, operation="run", of=figures)


def report(*lines: LineResults) -> Report:
    plan = Plan(
        passfs={"ours": Passfs({})},
        peers={name: Peer("true {source} {mountpoint}") for name in PEERS},
        rounds=1,
        size=1,
        least_s=0,
        lines=("*",),
        busy=0,
        costs=False,
        stage="/nowhere",
        on_tmpfs=True,
        seed=1,
    )
    made = Report(
        taken="2026-01-02T03:04:05+00:00",
        duration_s=1,
        plan=plan,
        machine={
            "kernel": "6.18",
            "processors": 2,
            "processor": "one",
            "idle_before": 0.5,
            "idle_during": 0.25,
            "stolen_during": 0.03,
            "load_before": [1.0, 2.0, 3.0],
        },
        versions={},
        lines=list(lines),
    )
    conclude(made)
    return made


@pytest.fixture
def taken() -> Report:
    return report(
        line("stat", "metadata", bare=1, ours=4, theirs=4, theirs_single=8, third=2),
        line("unpack", "work", bare=1, ours=2, theirs=8, theirs_single=5, third=2),
        line("rm", "work", bare=1, ours=5, theirs=8, theirs_single=4, third=5),
    )


def test_the_better_mode_of_a_program_is_the_opponent(taken: Report) -> None:
    assert verdict.sentences(taken) == [
        (
            "Names and attributes, ours and theirs (its default, the better of 2 modes): 1.00× of"
            " its time, level; faster on 0 of 1 lines."
        ),
        (
            "Names and attributes, ours and third: 2.00× of its time, behind; faster on 0 of 1"
            " lines. Above 1.20×: stat (2.00×)."
        ),
        (
            "Real work, ours and theirs (single, the better of 2 modes): 0.71× of its time, ahead;"
            " faster on 1 of 2 lines. Above 1.20×: rm (1.25×)."
        ),
        "Real work, ours and third: 1.00× of its time, level; faster on 0 of 2 lines.",
        (
            "Processor time of real work, ours and theirs (single, the better of 2 modes): 700 ms"
            " (2,000 requests of 350 µs) against 900 ms (2,000 requests of 450 µs); 0.78× in all,"
            " ahead."
        ),
        (
            "Processor time of real work, ours and third: 700 ms (2,000 requests of 350 µs) against"
            " 700 ms (2,000 requests of 350 µs); 1.00× in all, level."
        ),
    ]


def test_lines_above_the_limit_are_named_slowest_first() -> None:
    names = {"one": 1.3, "two": 3.0, "three": 1.2, "four": 2.0}
    lines = [
        line(name, "work", bare=1, ours=value, theirs=1, theirs_single=1, third=1)
        for name, value in names.items()
    ]

    assert (
        "Above 1.20×: two (3.00×), four (2.00×), one (1.30×)."
        in verdict.sentences(report(*lines))[0]
    )


def test_a_program_that_fails_on_a_line_is_not_compared_in_that_group(taken: Report) -> None:
    failing = taken.lines[1].of["third"]
    failing.samples, failing.failure, failing.median_s, failing.cpu_s = [], "EIO", None, None
    conclude(taken)

    said = verdict.sentences(taken)

    assert [words for words in said if "third" in words] == [
        (
            "Names and attributes, ours and third: 2.00× of its time, behind; faster on 0 of 1"
            " lines. Above 1.20×: stat (2.00×)."
        )
    ]
    assert "third" not in taken.totals


def test_totals_are_sums_of_medians_and_shares_of_all_samples() -> None:
    of = {"bare": samples(1), "ours": samples(1, 2, 9, requests=100)}
    of |= {name: samples(1) for name in PEERS}
    first = LineResults(name="unpack", group="work", operation="run", of=of)
    again = msgspec.structs.replace(first, of={**of, "ours": samples(4, 4, 4, requests=50)})
    total = report(first, again).totals["ours"]

    assert total.seconds == pytest.approx(6)
    assert total.cpu_s == pytest.approx(0.6)
    assert total.user_share == pytest.approx(0.2)
    assert total.requests == 150
    assert total.request_s == pytest.approx(0.004)


def test_tables_have_the_requests_of_each_line_and_of_all(taken: Report) -> None:
    shown = {each.title: each for each in table.tables(taken)}

    counts = shown["Real work: requests, and the processor time of each"]
    assert counts.rows[0][:3] == ["unpack", "run", "1,000 of 200 µs"]
    assert shown["Real work in all: processor time"].rows[0] == [
        *("ours", "2,000", "700 ms (0.14 + 0.56)", "350 µs"),
        *("1.00×", "0.44×", "0.78×", "1.00×"),
    ]


def test_requests_that_were_not_counted_are_not_shown() -> None:
    of = {"bare": samples(1), "ours": samples(1), **{name: samples(2) for name in PEERS}}
    taken = report(LineResults(name="unpack", group="work", operation="run", of=of))

    assert not any("requests" in shown.title for shown in table.tables(taken))
    assert "ours and third: 100 ms against 200 ms; 0.50× in all, ahead." in " ".join(
        verdict.sentences(taken)
    )


def test_a_line_almost_without_requests_has_no_time_for_each() -> None:
    of = {name: samples(1, requests=0.01) for name in ("bare", "ours", *PEERS)}
    taken = report(LineResults(name="stat warm", group="metadata", operation="file", of=of))
    counts = next(each for each in table.tables(taken) if "requests" in each.title)

    assert counts.rows == [["stat warm", "file", "0", "0", "0", "0"]]


def test_the_page_begins_with_the_machine_and_the_words(taken: Report) -> None:
    facts, words = markdown.page(taken).split("\n\n")[:2]

    assert "load 1.0 before and unknown at the end" in " ".join(facts.split())
    assert "stolen from it 3%" in " ".join(facts.split())
    assert len(words.split("\n- ")) == len(verdict.sentences(taken))
