"""The text that Prometheus scrapes: a table of metrics, each with the fact that it shows.

The library writes the text. A text of 200 busy volumes takes it two seconds, so `render` belongs
in a thread.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from passthrough.worker.counters import Counters, Operation, bounds_ns
from plugin.metrics.pages import Exposition
from plugin.metrics.snapshot import Served, Snapshot, VolumeFacts
from plugin.volumes.health import Word

_OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0"
# The worker counts in finer buckets. Each bound is a series of each operation of each volume.
_FIRST_NS: Final = 1 << 10
_LAST_NS: Final = 1 << 33
_EACH: Final = 2


class _Row(NamedTuple):
    """A metric with one value for each volume."""

    kind: type[GaugeMetricFamily | CounterMetricFamily]
    name: str
    meaning: str
    value: Callable[[VolumeFacts], float | None]
    """Return the value; None if the volume has none."""


def _of_mount(value: Callable[[Served], float | None]) -> Callable[[VolumeFacts], float | None]:
    return lambda volume: None if volume.served is None else value(volume.served)


def _of_counters(value: Callable[[Counters], float]) -> Callable[[VolumeFacts], float | None]:
    return _of_mount(lambda served: served.counters and value(served.counters))


_ROWS: Final = (
    _Row(
        GaugeMetricFamily,
        "passfs_references",
        "Mount requests without their Unmount",
        lambda volume: volume.references,
    ),
    _Row(
        GaugeMetricFamily,
        "passfs_dead_references",
        "References to a mount that has ended",
        lambda volume: volume.dead_references,
    ),
    _Row(
        GaugeMetricFamily,
        "passfs_guards",
        "Guards that are ready to replace the worker",
        _of_mount(lambda served: served.guards),
    ),
    _Row(
        CounterMetricFamily,
        "passfs_worker_deaths_total",
        "Workers that have died and were replaced",
        _of_mount(lambda served: served.deaths),
    ),
    _Row(
        GaugeMetricFamily,
        "passfs_last_takeover_seconds",
        "From the last death of a worker to the service of the next one",
        _of_mount(lambda served: served.takeover_s or None),
    ),
    _Row(
        GaugeMetricFamily,
        "passfs_worker_resident_memory_bytes",
        "Resident memory of the worker, with pages that its guards share",
        _of_mount(lambda served: served.usage and served.usage.resident_bytes),
    ),
    _Row(
        CounterMetricFamily,
        "passfs_worker_cpu_seconds_total",
        "Processor time of the worker since it began",
        _of_mount(lambda served: served.usage and served.usage.cpu_s),
    ),
    _Row(
        CounterMetricFamily,
        "passfs_opens_total",
        "Regular files that the worker has opened for callers",
        _of_counters(lambda counters: counters.opens),
    ),
    _Row(
        CounterMetricFamily,
        "passfs_passthrough_opens_total",
        "Of passfs_opens_total, those whose data the kernel passes through",
        _of_counters(lambda counters: counters.passing_opens),
    ),
    _Row(
        CounterMetricFamily,
        "passfs_read_bytes_total",
        "Bytes that callers have read from the worker, without passthrough",
        _of_counters(lambda counters: counters.bytes_read),
    ),
    _Row(
        CounterMetricFamily,
        "passfs_written_bytes_total",
        "Bytes that callers have written to the worker, without passthrough",
        _of_counters(lambda counters: counters.bytes_written),
    ),
    _Row(
        GaugeMetricFamily,
        "passfs_inodes",
        "Inodes that the kernel remembers or has open",
        _of_counters(lambda counters: counters.inodes),
    ),
    _Row(
        GaugeMetricFamily,
        "passfs_open_files",
        "Regular files that are open, once for each open",
        _of_counters(lambda counters: counters.open_files),
    ),
    _Row(
        GaugeMetricFamily,
        "passfs_open_directories",
        "Directories that are open, once for each open",
        _of_counters(lambda counters: counters.open_directories),
    ),
    _Row(
        GaugeMetricFamily,
        "passfs_passthrough_files",
        "Open files whose data the kernel passes through, once for each file",
        _of_counters(lambda counters: counters.passing_files),
    ),
)


def render(snapshot: Snapshot, accept: str) -> Exposition:
    """Return the text of *snapshot*, in OpenMetrics if the Accept header *accept* asks for it."""
    encode, form = choose_encoder(_OPENMETRICS if _takes_openmetrics(accept) else "")
    return Exposition(text=encode(_Families(snapshot)), form=form)


def _takes_openmetrics(accept: str) -> bool:
    """Return whether *accept*, which is any text, has the form of `_OPENMETRICS`."""
    forms = [{word.strip() for word in form.split(";")} for form in accept.split(",")]
    wanted = {word.strip() for word in _OPENMETRICS.split(";")}
    return any(wanted <= form for form in forms)


class _Families(Collector):
    """All metrics of one scrape."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Return each metric with its values."""
        volumes = self._snapshot.volumes
        yield _build(self._snapshot)
        yield _states(self._snapshot)
        yield _health(volumes)
        for row in _ROWS:
            yield _filled(row, volumes)
        yield _durations(volumes)
        yield _errors(volumes)
        yield from ProcessCollector(registry=None).collect()


def _build(snapshot: Snapshot) -> Metric:
    family = InfoMetricFamily("passfs_build", "The version, and the identity of the program")
    family.add_metric([], {"version": snapshot.version, "program": snapshot.program})
    return family


def _states(snapshot: Snapshot) -> Metric:
    family = GaugeMetricFamily("passfs_volumes", "Volumes by state", labels=["state"])
    for state, number in snapshot.states.items():
        family.add_metric([state.name.lower()], number)
    return family


def _health(volumes: Iterable[VolumeFacts]) -> Metric:
    meaning = "1 for the health of the volume, as `passfs ls` shows it"
    family = GaugeMetricFamily("passfs_volume_health", meaning, labels=["volume", "health"])
    for volume in volumes:
        for word in Word:
            family.add_metric([volume.name, word], word is volume.health)
    return family


def _filled(row: _Row, volumes: Iterable[VolumeFacts]) -> Metric:
    family = row.kind(row.name, row.meaning, labels=["volume"])
    for volume in volumes:
        if (value := row.value(volume)) is not None:
            family.add_metric([volume.name], value)
    return family


def _counted(volumes: Iterable[VolumeFacts]) -> Iterator[tuple[str, Counters]]:
    """Return the name of each volume that counts, with its counters."""
    for volume in volumes:
        if volume.served is not None and volume.served.counters is not None:
            yield volume.name, volume.served.counters


def _durations(volumes: Iterable[VolumeFacts]) -> Metric:
    family = HistogramMetricFamily(
        "passfs_request_duration_seconds",
        "Times of the kernel's requests by operation",
        labels=["volume", "operation"],
    )
    for volume, counters in _counted(volumes):
        for name, operation in counters.operations.items():
            family.add_metric([volume, name], [*_buckets(operation)], operation.ns / 1e9)
    return family


def _buckets(operation: Operation) -> Iterator[tuple[str, float]]:
    """Return some bounds, each with the number of all requests below it."""
    below = zip(bounds_ns(), accumulate(operation.buckets), strict=False)
    for bound_ns, number in [*below][::_EACH]:
        if _FIRST_NS <= bound_ns <= _LAST_NS:
            yield repr(bound_ns / 1e9), number
    yield "+Inf", operation.requests


def _errors(volumes: Iterable[VolumeFacts]) -> Metric:
    family = CounterMetricFamily(
        "passfs_errors_total", "Requests that failed, by errno", labels=["volume", "errno"]
    )
    for volume, counters in _counted(volumes):
        for name, number in counters.errors.items():
            family.add_metric([volume, name], number)
    return family
