"""The load of a mount by its counters: rates between two readings, means and percentiles; no I/O.

The counters have times in buckets, so a percentile is known by the bound above it alone.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec

from plugin.counted import FIRST_BOUND_NS, Counters

_WAITING: Final = {"SETLK", "SETLKW"}
"""Their times are of waits for locks, in which no thread works."""


class OperationLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of one operation since the mount was made."""

    name: str
    requests: int
    per_second: float | None
    """Now; None if it was not measured."""
    mean_us: float
    median_below_us: float | None
    """The bound that half of the requests were below; None if no bound is."""
    p99_below_us: float | None


class ErrorLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The requests that have failed with one errno since the mount was made."""

    name: str
    requests: int
    per_second: float | None


class Reading(NamedTuple):
    """The counters of a mount at a time."""

    at_ns: int
    counters: Counters | None
    """None if they are not known."""
    mount: int = 0
    """As in VolumeCounters."""


class Load(NamedTuple):
    """The requests of a mount between two readings."""

    requests_per_s: float
    errors_per_s: float
    busy: float
    """Times of requests per time; 2 if two were served all the time. Waits for locks are left out.
    """
    mean_us: float | None
    """None if there was no request."""
    read_per_s: float
    written_per_s: float
    """Bytes, by the worker."""


def operations(before: Reading | None, after: Reading) -> list[OperationLoad]:
    """Return the operations of *after*, the one that took most time first.

    *before* is an earlier reading; None: rates are not measured.
    """
    new = _between(before, after)
    found = {} if after.counters is None else after.counters.operations
    return [
        OperationLoad(
            name=name,
            requests=number,
            per_second=_rate(new.requests.get(name, 0), new.seconds),
            mean_us=each.ns / number / 1000,
            median_below_us=percentile_us(each.buckets, 50),
            p99_below_us=percentile_us(each.buckets, 99),
        )
        for name, each in sorted(found.items(), key=lambda row: (-row[1].ns, row[0]))
        if (number := sum(each.buckets))
    ]


def errors(before: Reading | None, after: Reading) -> list[ErrorLoad]:
    """Return the errors of *after*, the most frequent one first; *before* as in `operations`."""
    new = _between(before, after)
    found = {} if after.counters is None else after.counters.errors
    return [
        ErrorLoad(
            name=name,
            requests=number,
            per_second=_rate(new.errors.get(name, 0), new.seconds),
        )
        for name, number in sorted(found.items(), key=lambda row: (-row[1], row[0]))
    ]


def load(before: Reading, after: Reading) -> Load | None:
    """Return the load between two readings; None if the counters of *after* are not known."""
    new = _between(before, after)
    if not new.seconds:
        return None
    working = new.requests.keys() - _WAITING
    requests = sum(new.requests[name] for name in working)
    ns = sum(new.ns[name] for name in working)
    return Load(
        requests_per_s=sum(new.requests.values()) / new.seconds,
        errors_per_s=sum(new.errors.values()) / new.seconds,
        busy=ns / 1e9 / new.seconds,
        mean_us=ns / requests / 1000 if requests else None,
        read_per_s=new.data["read"] / new.seconds,
        written_per_s=new.data["written"] / new.seconds,
    )


def percentile_us(buckets: Sequence[int], percent: int) -> float | None:
    """Return the least bound that at least *percent* % of the times are below, in microseconds.

    None: no bound is above so many.
    """
    wanted = sum(buckets) * percent
    for number, below in enumerate(accumulate(buckets[:-1])):
        if 100 * below >= wanted:
            return (FIRST_BOUND_NS << number) / 1000
    return None


class _Counted(NamedTuple):
    """What was counted between two readings."""

    seconds: float
    """0 if it was not measured."""
    requests: Mapping[str, int]
    """By operation."""
    ns: Mapping[str, int]
    """Their times, by operation."""
    errors: Mapping[str, int]
    data: Mapping[str, int]
    """Bytes that were read and written."""


def _between(before: Reading | None, after: Reading) -> _Counted:
    """Return what was counted between two readings.

    Another mount has counted from zero, and so has one whose numbers went back.
    """
    if before is None or after.counters is None or after.at_ns <= before.at_ns:
        return _Counted(0.0, {}, {}, {}, {})
    seconds = (after.at_ns - before.at_ns) / 1e9
    now = _numbers(after.counters)
    if before.counters is None or before.mount != after.mount:
        return _Counted(seconds, *now)
    new = [_minus(*each) for each in zip(now, _numbers(before.counters), strict=True)]
    went_back = any(number < 0 for each in new for number in each.values())
    return _Counted(seconds, *(now if went_back else new))


def _numbers(counters: Counters) -> tuple[Mapping[str, int], ...]:
    """Return requests and times by operation, errors by errno, and bytes."""
    rows = counters.operations.items()
    requests = {name: sum(each.buckets) for name, each in rows}
    times = {name: each.ns for name, each in rows}
    data = {"read": counters.bytes_read, "written": counters.bytes_written}
    return requests, times, counters.errors, data


def _minus(now: Mapping[str, int], before: Mapping[str, int]) -> Mapping[str, int]:
    return {name: now.get(name, 0) - before.get(name, 0) for name in {**before, **now}}


def _rate(number: int, seconds: float) -> float | None:
    return number / seconds if seconds else None
