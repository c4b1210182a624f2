"""load.py: rates and percentiles from readings of counters."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings, strategies as st

from passthrough.worker.counters import bounds_ns
from plugin.commands import load
from plugin.commands.load import Reading
from plugin.counted import FIRST_BOUND_NS, Counters, Operation

SECOND_NS = 1_000_000_000
BUCKETS = len(bounds_ns()) + 1


def operation(times_ns: list[int]) -> Operation:
    """Return an operation with requests that took *times_ns*."""
    numbers = [sum(time >= bound for bound in bounds_ns()) for time in times_ns]
    buckets = [numbers.count(number) for number in range(BUCKETS)]
    return Operation(ns=sum(times_ns), buckets=buckets)


def counters(errors: Mapping[str, int] | None = None, **times_ns: list[int]) -> Counters:
    operations = {name: operation(times) for name, times in times_ns.items()}
    return Counters(operations=operations, errors=errors or {})


def test_the_bounds_are_those_of_the_worker() -> None:
    assert [FIRST_BOUND_NS << number for number in range(BUCKETS - 1)] == [*bounds_ns()]


def test_operations_have_rates_and_means_in_the_order_of_their_time() -> None:
    before = Reading(0, counters(LOOKUP=[3000], READ=[300]))
    after = Reading(2 * SECOND_NS, counters(LOOKUP=[3000, 5000, 1000], READ=[300], OPEN=[90_000]))
    rows = load.operations(before, after)
    assert [(row.name, row.requests, row.per_second) for row in rows] == [
        ("OPEN", 1, 0.5),
        ("LOOKUP", 3, 1.0),
        ("READ", 1, 0.0),
    ]
    assert [row.mean_us for row in rows] == [90.0, 3.0, 0.3]
    assert (rows[1].median_below_us, rows[1].p99_below_us) == (4.096, 8.192)


def test_without_an_earlier_reading_there_are_no_rates() -> None:
    after = Reading(SECOND_NS, counters({"EIO": 2}, LOOKUP=[1]))
    assert [row.per_second for row in load.operations(None, after)] == [None]
    assert [row.per_second for row in load.errors(None, after)] == [None]
    assert load.load(Reading(SECOND_NS, None), after) is None  # no time has passed


def test_errors_have_rates_in_the_order_of_their_number() -> None:
    before = Reading(0, counters({"ENOENT": 3}))
    after = Reading(SECOND_NS // 2, counters({"EIO": 1, "ENOENT": 8}))
    assert [(row.name, row.requests, row.per_second) for row in load.errors(before, after)] == [
        ("ENOENT", 8, 10.0),
        ("EIO", 1, 2.0),
    ]


def test_waits_for_locks_are_no_load() -> None:
    waits = {"SETLKW": [60 * SECOND_NS], "SETLK": [SECOND_NS]}
    after = Reading(2 * SECOND_NS, counters({"EAGAIN": 1}, READ=[SECOND_NS], **waits))
    found = load.load(Reading(0, counters()), after)
    assert found is not None
    assert found[:4] == (1.5, 0.5, 0.5, 1e6)


def test_without_requests_there_is_no_mean() -> None:
    found = load.load(Reading(0, counters(READ=[1])), Reading(SECOND_NS, counters(READ=[1])))
    assert found == load.Load(0.0, 0.0, 0.0, None, 0.0, 0.0)


def test_data_have_rates() -> None:
    before = Counters(operations={}, errors={}, bytes_read=10, bytes_written=20)
    after = Counters(operations={}, errors={}, bytes_read=110, bytes_written=420)
    found = load.load(Reading(0, before), Reading(2 * SECOND_NS, after))
    assert found is not None
    assert (found.read_per_s, found.written_per_s) == (50.0, 200.0)


@pytest.mark.parametrize(
    "before",
    [
        Reading(0, None, 2),
        Reading(0, counters(READ=[1] * 9), 1),
        Reading(0, counters(READ=[1] * 9), 2),
        Reading(0, counters(LOOKUP=[1]), 2),
        Reading(0, counters({"EIO": 1}), 2),
    ],
    ids=["unknown", "another mount", "fewer requests", "no operation", "no error"],
)
def test_counters_that_have_begun_anew_count_from_zero(before: Reading) -> None:
    after = Reading(SECOND_NS, counters(READ=[1] * 5), 2)
    found = load.load(before, after)
    assert found is not None
    assert (found.requests_per_s, found.errors_per_s) == (5.0, 0.0)


def test_unknown_counters_have_no_load() -> None:
    unknown = Reading(SECOND_NS, None)
    assert load.load(Reading(0, counters(READ=[1])), unknown) is None
    assert load.operations(None, unknown) == []
    assert load.errors(None, unknown) == []


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=300), st.sampled_from([50, 99]))
def test_a_percentile_is_the_least_bound_above_so_many(times_ns: list[int], percent: int) -> None:
    found = load.percentile_us(operation(times_ns).buckets, percent)
    enough = [
        bound
        for bound in bounds_ns()
        if 100 * sum(time < bound for time in times_ns) >= percent * len(times_ns)
    ]
    assert found == (enough[0] / 1000 if enough else None)


NUMBERS = st.integers(0, 1 << 68)
ANY = st.builds(
    Counters,
    operations=st.dictionaries(
        st.sampled_from(["READ", "LOOKUP", "SETLKW"]),
        st.builds(
            Operation, ns=NUMBERS, buckets=st.lists(NUMBERS, min_size=BUCKETS, max_size=BUCKETS)
        ),
    ),
    errors=st.dictionaries(st.sampled_from(["EIO", "ENOENT"]), NUMBERS),
)


@settings(max_examples=50)
@given(ANY, ANY, NUMBERS)
def test_no_rate_is_ever_negative(before: Counters, after: Counters, at_ns: int) -> None:
    """Also if the worker has written any number."""
    then, now = Reading(0, before), Reading(at_ns, after)
    found = load.load(then, now)
    rates = [row.per_second for row in load.operations(then, now)]
    rates += [row.per_second for row in load.errors(then, now)]
    assert (found is None) == (at_ns == 0)
    if found is not None:
        rates += [found.requests_per_s, found.errors_per_s, found.busy, found.mean_us or 0.0]
        assert all(rate is not None and rate >= 0 for rate in rates)
