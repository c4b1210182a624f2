"""Medians, ratios and means of samples; and the text in place of a missing figure."""

import msgspec
import pytest

from benchmarks import markdown, picture, table
from benchmarks.plan import Passfs, Peer, Plan
from benchmarks.report import Amount, Cost, Figures, LineResults, Report, Sample, conclude


def plan() -> Plan:
    return Plan(
        passfs={"ours": Passfs({"session": "libfuse"})},
        peers={"theirs": Peer("true {source} {mountpoint}")},
        rounds=3,
        size=1,
        least_s=0.1,
        lines=("*",),
        busy=0,
        costs=True,
        stage="/nowhere",
        on_tmpfs=True,
        seed=1,
    )


def figures(*seconds: float, failure: str = "") -> Figures:
    return Figures(samples=[Sample(s, s / 10) for s in seconds], failure=failure)


def report(*lines: LineResults) -> Report:
    made = Report(
        taken="2026-01-02T03:04:05+00:00",
        duration_s=1,
        plan=plan(),
        machine={
            "kernel": "6.18",
            "processors": 2,
            "processor": "<some & one>",
            "idle_before": 0.5,
            "idle_during": 0.25,
        },
        versions={},
        lines=list(lines),
        costs=[
            Cost(name="GETATTR", unit="µs", of={"ours": Amount(value=9, count=7, user=5, system=4)})
        ],
    )
    conclude(made)
    return made


def line(name: str, group: str, **of: Figures) -> LineResults:
    return LineResults(name=name, group=group, operation="file", of=of)


@pytest.fixture
def taken() -> Report:
    return report(
        line(
            "stat",
            "metadata",
            bare=figures(1e-6, 1e-6, 9e-6),
            ours=figures(2e-6, 4e-6, 5e-6),
            theirs=figures(8e-6, 8e-6, 8e-6),
        ),
        line("one", "work", bare=figures(1), ours=figures(2), theirs=figures(8)),
        line("two", "work", bare=figures(1), ours=figures(8), theirs=figures(2)),
    )


def test_a_line_is_the_median_of_its_samples_and_a_ratio_is_of_medians(taken: Report) -> None:
    ours = taken.lines[0].of["ours"]

    assert ours.median_s == 4e-6
    assert ours.spread == pytest.approx(0.25)
    assert ours.cpu_s == pytest.approx(4e-7)
    assert ours.ratio == {"bare": pytest.approx(4), "theirs": pytest.approx(0.5)}


def test_means_are_geometric_and_by_group(taken: Report) -> None:
    assert taken.means["work"]["ours"] == {"bare": pytest.approx(4), "theirs": pytest.approx(1)}
    assert "data" not in taken.means


def test_a_failure_has_no_median_and_leaves_the_group_without_a_mean() -> None:
    failed = report(
        line("one", "work", bare=figures(1), ours=figures(2), theirs=figures(failure="EIO")),
        line("two", "work", bare=figures(1), ours=figures(2), theirs=figures(2)),
    )

    assert failed.failures == ["theirs: one: EIO"]
    assert failed.means["work"]["ours"] == {"bare": pytest.approx(2)}
    assert table.tables(failed)[0].rows[0][-1] == "fails"
    assert picture.picture(failed).count("<polygon") == 2  # in the legend, and on one line


def test_a_cost_that_could_not_be_measured_is_a_failure(taken: Report) -> None:
    taken.costs[0].failures["theirs"] = "EMFILE"

    assert taken.failures == ["theirs: GETATTR: EMFILE"]
    assert table.tables(taken)[-1].rows == [["GETATTR", "µs", "9.00 (5.00 + 4.00)", "fails"]]


def test_a_report_survives_encoding_and_decoding(taken: Report) -> None:
    assert msgspec.json.decode(msgspec.json.encode(taken), type=Report) == taken


def test_tables_have_times_ratios_spreads_and_costs(taken: Report) -> None:
    titles = {shown.title: shown for shown in table.tables(taken)}

    assert titles["Names and attributes"].rows == [
        ["stat", "file", "1.00 µs ±0%", "4.00 µs 4.00× ±25%", "8.00 µs 8.00× ±0%"]
    ]
    assert titles["Costs of a request and of a volume"].rows == [
        ["GETATTR", "µs", "9.00 (5.00 + 4.00)", "–"]
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5e-7, "0.25 µs"), (1.5e-5, "15.0 µs"), (0.1234, "123 ms"), (2, "2.00 s")],
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert table.duration(seconds) == text


def test_the_page_has_every_table(taken: Report) -> None:
    page = markdown.page(taken)

    for shown in table.tables(taken):
        assert f"### {shown.title}\n" in page
        for row in shown.rows:
            assert row[0] in page


def test_the_drawing_escapes_names_as_xml(taken: Report) -> None:
    drawn = picture.picture(taken)

    assert "&lt;some &amp; one&gt;" in drawn
    assert "<some" not in drawn
