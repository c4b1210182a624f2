"""Requests of a volume that fail, as a line of the log at the level `debug`.

The line comes from the counters in shared memory (passthrough/worker/counters.py), which the plugin
reads. No worker notices, and no request takes longer.
"""

from collections.abc import Iterator, Mapping

from passthrough.worker.counters import Counters

INTERVAL_S = 1.0
"""Between two lines about a volume."""
LINE = "requests fail: {}; of {} requests: {}"


def between(before: Counters, now: Counters) -> str:
    """Return the line on requests that have failed in between; empty if none has."""
    failed = dict(_more(before.errors, now.errors))
    if not failed:
        return ""
    served = dict(_more(_requests(before), _requests(now)))
    return LINE.format(_listed(failed), sum(served.values()), _listed(served))


def _requests(counters: Counters) -> dict[str, int]:
    return {name: each.requests for name, each in counters.operations.items()}


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items()) or "none"


def _more(before: Mapping[str, int], now: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield by name how many there are more; a worker that is compromised may have lowered some."""
    for name in sorted(now):
        if (more := now[name] - before.get(name, 0)) > 0:
            yield name, more
