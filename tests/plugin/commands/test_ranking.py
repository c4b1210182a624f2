"""ranking.py: the volumes by load, from samples, and as much of them as a terminal has room for."""

import pytest

from plugin.commands.document import Table
from plugin.commands.load import Reading
from plugin.commands.processes import Usage
from plugin.commands.ranking import Measured, Sample, fitting, ranking, ranking_document, summary
from plugin.counted import Counters, Operation
from plugin.volumes.health import Health, Word

SECOND_NS = 1_000_000_000
OK = Health(Word.OK)


def measured(
    at_s: int, requests: int | None, *, mount: int = 1, pid: int = 7, cpu_s: float = 0.0
) -> Measured:
    """Return a volume with so many requests, of 1 ms each; None: they are not known."""
    at_ns = at_s * SECOND_NS
    read = Operation(ns=1_000_000 * (requests or 0), buckets=[requests or 0])
    counters = None if requests is None else Counters(operations={"READ": read}, errors={})
    usage = Usage(at_ns=at_ns, pid=pid, cpu_s=cpu_s, memory_bytes=1 << 20)
    return Measured(Reading(at_ns, counters, mount), OK, usage)


def sample(at_s: int, **volumes: Measured) -> Sample:
    return Sample(at_s * SECOND_NS, volumes)


def test_the_volume_with_most_load_comes_first() -> None:
    before = sample(0, a=measured(0, 0), b=measured(0, 5), c=measured(0, None), d=measured(0, 5))
    after = sample(2, a=measured(2, 10), b=measured(2, 45), c=measured(2, None), d=measured(2, 5))
    found = ranking(before, after)
    assert found.measured_s == 2.0
    assert [(row.name, row.requests_per_s, row.busy) for row in found.volumes] == [
        ("b", 20.0, 0.02),
        ("a", 5.0, 0.005),
        ("c", None, None),
        ("d", 0.0, 0.0),
    ]
    assert summary(found) == "mounts: 4  requests/s: 25  busy: 2.5 %"
    (table,) = ranking_document(found)
    assert list(table.rows[0][:5]) == ["b", "ok", "20", "2 %", "1 ms"]


def test_a_first_sample_has_no_rates() -> None:
    found = ranking(None, sample(1, a=measured(1, 9)))
    assert found.measured_s is None
    (row,) = found.volumes
    assert (row.requests_per_s, row.busy, row.cpu, row.memory_bytes) == (None, None, None, 1 << 20)
    assert summary(found) == "mounts: 1"


def test_volumes_appear_go_and_are_mounted_anew() -> None:
    before = sample(0, gone=measured(0, 9), again=measured(0, 9, mount=1))
    after = sample(1, new=measured(1, 3), again=measured(1, 2, mount=2))
    rates = {row.name: row.requests_per_s for row in ranking(before, after).volumes}
    assert rates == {"new": 3.0, "again": 2.0}


@pytest.mark.parametrize(("pid", "cpu_s", "cpu"), [(7, 1.5, 0.5), (8, 1.5, None), (7, 0.5, 0.0)])
def test_processor_time_is_that_of_one_worker(pid: int, cpu_s: float, cpu: float | None) -> None:
    before = sample(0, a=measured(0, 1, cpu_s=1.0))
    (row,) = ranking(before, sample(1, a=measured(1, 1, pid=pid, cpu_s=cpu_s))).volumes
    assert row.cpu == cpu


def test_a_worker_that_is_not_visible_has_no_processor_time() -> None:
    unseen = measured(1, 1)._replace(usage=None)
    (row,) = ranking(sample(0, a=measured(0, 1)), sample(1, a=unseen)).volumes
    assert (row.worker, row.cpu, row.memory_bytes) == (None, None, None)
    assert row.requests_per_s == 0.0


def test_without_a_mount_the_document_says_so() -> None:
    (block,) = ranking_document(ranking(None, sample(0)))
    assert block.rows == [("top", "no volume is mounted")]


TABLE = Table("", ("NAME", "B", "LONGER"), [(str(number), "b", "c") for number in range(9)])


@pytest.mark.parametrize(("width", "columns"), [(80, 3), (15, 3), (14, 2), (7, 2), (6, 1), (1, 1)])
def test_a_narrow_terminal_has_the_first_columns(width: int, columns: int) -> None:
    shown = fitting(TABLE, width, 80)
    assert shown.columns == TABLE.columns[:columns]
    assert {len(row) for row in shown.rows} == {columns}


@pytest.mark.parametrize(
    ("height", "first"), [(10, [*"012345678"]), (9, [*"0123456", "2 more"]), (2, ["9 more"])]
)
def test_a_low_terminal_has_the_first_rows(height: int, first: list[str]) -> None:
    shown = fitting(TABLE, 80, height)
    assert [row[0] for row in shown.rows] == first
    assert len(shown.rows) < height
