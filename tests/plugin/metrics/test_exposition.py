"""exposition.py: the text of volumes with any name, with any counters."""

import time
from collections.abc import Mapping

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families as text_families

from passthrough.session.abi import Opcode
from passthrough.worker.counters import Counters, Operation, bounds_ns
from plugin.metrics.exposition import render
from plugin.metrics.snapshot import Served, Snapshot, VolumeFacts
from plugin.process_stat import ProcessStat
from plugin.volume import State, VolumeName
from plugin.volumes.health import Word
from tests.support.tools.scraping import parsed

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
BUCKETS = len(bounds_ns()) + 1
DURATION = "passfs_request_duration_seconds"
NAMES = [
    "plain",
    'quo"te',
    "back\\slash",
    "new\nline",
    "end\\n",
    "ü€😀",
    "{a=1}",
    " ",
    "#",
    "\0\x1b",
]


def operation(**numbers: int) -> Operation:
    """Return the requests of an operation: `at_10=3` are three in the bucket 10."""
    buckets = [0] * BUCKETS
    for name, number in numbers.items():
        buckets[int(name.removeprefix("at_"))] = number
    return Operation(1000 * sum(buckets), tuple(buckets))


def volume(
    name: str = "vol",
    operations: Mapping[str, Operation] | None = None,
    errors: Mapping[str, int] | None = None,
) -> VolumeFacts:
    counters = Counters(operations or {}, errors or {}, 8, 6, 4096, 512, 5, 4, 3, 2)
    used = ProcessStat(cpu_s=1.5, resident_bytes=4096, started_s=0.0)
    served = Served(guards=2, deaths=1, takeover_s=0.25, usage=used, counters=counters)
    return VolumeFacts(VolumeName(name), Word.OK, 3, 1, served)


def snapshot(*volumes: VolumeFacts) -> Snapshot:
    return Snapshot("1.2", "abc", {State.MOUNTED: len(volumes), State.LEFT: 0}, volumes)


def text(*volumes: VolumeFacts, accept: str = "") -> str:
    return render(snapshot(*volumes), accept).text.decode()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_any_text_is_one_label(name: str) -> None:
    written = text(volume(name, {"LOOKUP": operation(at_0=1)}, {"EIO": 1}))
    found = parsed(written)
    assert found.labelled("passfs_references", "volume") == {name: 3.0}
    assert found.labelled("passfs_errors_total", "volume") == {name: 1.0}
    assert found.value(f"{DURATION}_count", volume=name, operation="LOOKUP") == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_openmetrics_has_the_same_samples(name: str) -> None:
    facts = volume(name, {"READ": operation(at_5=2)}, {"ENOENT": 4})
    form = render(snapshot(facts), OPENMETRICS).form
    assert form.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    written = text(facts, accept=OPENMETRICS)
    read = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in openmetrics_families(written)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }
    plain = parsed(text(facts)).samples
    own = {key: value for key, value in plain.items() if key[0].startswith("passfs_")}
    assert own.items() <= read.items()


@pytest.mark.parametrize(
    "accept",
    [
        *("", "*/*", "text/html", "text/plain;version=0.0.4", "text/plain;version=1.0.0"),
        *(f"application/openmetrics-text;version={text}" for text in ("x", "1.0.0.\xff", "2", "")),
    ],
)
def test_other_clients_get_the_text_format(accept: str) -> None:
    assert render(snapshot(), accept).form == "text/plain; version=0.0.4; charset=utf-8"


def test_each_metric_has_a_type_and_a_meaning() -> None:
    facts = volume("vol", {"READ": operation(at_5=2)}, {"ENOENT": 4})
    families = [*text_families(text(facts))]
    assert {family.type for family in families} == {"gauge", "counter", "histogram"}
    assert all(family.documentation for family in families)
    assert all(family.samples for family in families)


def test_a_histogram_has_each_request_below_its_bounds() -> None:
    """At the bounds of the worker's buckets: 256 ns is the first one, 137 s the last one."""
    last = BUCKETS - 1
    found = parsed(
        text(volume("vol", {"READ": operation(at_0=1, at_2=2, at_3=4, **{f"at_{last}": 8})}))
    )
    below = found.labelled(f"{DURATION}_bucket", "le")
    assert below["1.024e-06"] == 3  # up to bucket 2: below 2 ** 10 ns
    assert below["4.096e-06"] == 7
    assert below["4.294967296"] == 7
    assert below["+Inf"] == 15
    assert found.value(f"{DURATION}_count", volume="vol", operation="READ") == 15
    assert found.value(f"{DURATION}_sum", volume="vol", operation="READ") == pytest.approx(15e-6)
    bounds = [float(bound) for bound in below]
    assert bounds == sorted(bounds)
    assert [below[bound] for bound in below] == sorted(below.values())


def test_the_bounds_are_bounds_of_the_worker() -> None:
    found = parsed(text(volume("vol", {"READ": operation(at_0=1)})))
    bounds = [float(bound) for bound in found.labelled(f"{DURATION}_bucket", "le")]
    assert {*bounds[:-1]} <= {bound / 1e9 for bound in bounds_ns()}
    assert len(bounds) == 13


def test_any_number_of_a_worker_can_be_shown() -> None:
    """A worker that is compromised writes any numbers: 16 threads have 64 bits each."""
    most = 16 * (2**64 - 1)
    broken = Operation(54 * most, (most,) * BUCKETS)
    found = parsed(text(volume("vol", {"READ": broken}, {"EIO": most})))
    assert found.value("passfs_errors_total", volume="vol", errno="EIO") == float(most)


def test_a_volume_that_is_not_mounted_has_no_counters() -> None:
    idle = VolumeFacts(VolumeName("idle"), Word.IDLE, 0, 0, None)
    found = parsed(text(idle))
    assert found.value("passfs_references", volume="idle") == 0
    assert found.value("passfs_volume_health", volume="idle", health="idle") == 1
    shown = {name for name, labels in found.samples if ("volume", "idle") in labels}
    assert shown == {"passfs_references", "passfs_dead_references", "passfs_volume_health"}


def test_opens_data_inodes_and_open_files_are_shown() -> None:
    found = parsed(text(volume()))
    shown = {
        "passfs_opens_total": 8,
        "passfs_passthrough_opens_total": 6,
        "passfs_read_bytes_total": 4096,
        "passfs_written_bytes_total": 512,
        "passfs_inodes": 5,
        "passfs_open_files": 4,
        "passfs_open_directories": 3,
        "passfs_passthrough_files": 2,
    }
    assert {name: found.value(name, volume="vol") for name in shown} == shown


def test_volumes_are_counted_by_state() -> None:
    found = parsed(text(volume(), volume("other")))
    assert found.labelled("passfs_volumes", "state") == {"mounted": 2.0, "left": 0.0}
    assert found.value("passfs_build_info", version="1.2", program="abc") == 1


def test_the_text_of_200_busy_volumes_takes_seconds_at_most() -> None:
    """It is made in a thread; a scrape of Prometheus may take 10 s."""
    busy = {opcode.name: operation(at_5=2, at_9=1) for opcode in [*Opcode][:30]}
    volumes = [volume(f"vol{number}", busy, {"ENOENT": 1}) for number in range(200)]
    began = time.process_time()
    written = text(*volumes)
    assert time.process_time() - began < 5
    assert written.count(f"\n{DURATION}_bucket") == 200 * 30 * 13
