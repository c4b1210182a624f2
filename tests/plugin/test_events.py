"""events.py: the whole life of a volume in the log of the plugin, which runs as a service."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from passthrough.worker import events as of_workers
from plugin import events
from plugin.volume_options import SOURCE_ACCEPTED
from tests.support.fakes.service_manager import ServiceManager
from tests.support.tools.commands import passfs
from tests.support.tools.processes import members, wait_until
from tests.support.tools.service import Service

pytestmark = pytest.mark.full

END_S = 20.0
EVIL = "a\nINFO plugin.events: volume vol: removed\x1b\u2028"
NUMBER = re.compile(r"\b(worker|guard) \d+|(device) \d+:\d+|(after) [\d.]+")
Read = Callable[[], list[dict[str, Any]]]


@pytest.fixture(params=["text", "json"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def service(tmp_path: Path, manager: ServiceManager, form: str) -> Iterator[Service]:
    service = Service(tmp_path, manager, environment={"PASSFS_LOG_FORMAT": form})
    service.start()
    yield service
    assert manager.wait_for_count(0), manager.stored
    service.end(signal.SIGTERM)


def told(service: Service) -> list[str]:
    """Return the events in the log: of text the line, of JSON the message."""
    lines = service.log.read_text().splitlines()
    if service.environment["PASSFS_LOG_FORMAT"] == "json":
        found = [json.loads(line) for line in lines]
        texts = [line["message"] for line in found if line["logger"] == "plugin.events"]
    else:
        texts = re.findall(r"^[A-Z]+ plugin\.events: (.*)$", "\n".join(lines), re.MULTILINE)
    return [
        NUMBER.sub(lambda match: f"{match[1] or match[2] or match[3]} N", text) for text in texts
    ]


def wait_for(service: Service, event: str, count: int = 1) -> None:
    end = time.monotonic() + END_S
    while sum(event in text for text in told(service)) < count:
        assert time.monotonic() < end, service.log.read_text()
        time.sleep(0.01)


def status(service: Service) -> dict[str, Any]:
    found = service.call("VolumeDriver.Get", Name="vol")["Volume"]["Status"]
    assert isinstance(found, dict)
    return found


def kill_worker(service: Service) -> int:
    """Kill the worker of `vol`, and return its process id."""
    pid = int(status(service)["worker_pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


def live(service: Service, source: Path) -> list[str]:
    """Lead `vol` through its life, and return the texts of its events."""
    call = service.call
    call("VolumeDriver.Create", Name="vol", Opts={"source": str(source), "cache": "never"})
    call("VolumeDriver.Create", Name="vol", Opts={"source": str(source), "cache": "never"})
    call("VolumeDriver.Create", Name="vol")
    call("VolumeDriver.Mount", Name="vol", ID="a")
    call("VolumeDriver.Mount", Name="vol", ID="b")
    kill_worker(service)
    wait_for(service, "took over")
    call("VolumeDriver.Unmount", Name="vol", ID="b")
    service.end(signal.SIGTERM)
    service.start()
    call("VolumeDriver.Unmount", Name="vol", ID="unknown")
    call("VolumeDriver.Unmount", Name="vol", ID="a")
    source.rename(source.with_name("gone"))
    call("VolumeDriver.Mount", Name="vol", ID="c")
    source.with_name("gone").rename(source)
    call("VolumeDriver.Mount", Name="vol", ID="c")
    call("VolumeDriver.Remove", Name="vol")
    call("VolumeDriver.Remove", Name="vol")
    asked = f"cache is 'never' and 'auto' was asked for, source is {str(source)!r} and nothing"
    missing = f"{str(source)!r} does not exist; expected {SOURCE_ACCEPTED}"
    place = "worker N, device N"
    return [
        f"created, source {source}, options cache=never",
        f"cannot be created: volume 'vol' exists with other options: {asked} was asked for",
        f"mounted, {place}, session kernel, references 1, mount a",
        "another reference, references 2, mount b",
        "worker N was killed by SIGKILL",
        "worker N took over after N ms",
        "reference released, references 1, mount b",
        f"adopted, {place}, references 1",
        "unmounted, mount a",
        f"cannot be mounted: option 'source': {missing}, mount c",
        f"mounted, {place}, session kernel, references 1, mount c",
        "unmounted",
        "removed, files kept",
    ]


@pytest.mark.slow
def test_a_whole_life_has_one_line_for_each_event(service: Service, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    expected = live(service, source)

    assert told(service) == [f"volume vol: {text}" for text in expected]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json"], indirect=True)
def test_objects_have_the_fields_of_each_event(service: Service, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    live(service, source)

    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    found = [line for line in lines if "event" in line]
    assert {line["volume"] for line in found} == {"vol"}
    assert [(line["event"], line.get("mount_id")) for line in found] == [
        *(("created", None), ("create_refused", None), ("mounted", "a"), ("referenced", "b")),
        *(("worker_died", None), ("worker_replaced", None), ("released", "b"), ("adopted", None)),
        *(("unmounted", "a"), ("mount_refused", "c"), ("mounted", "c"), ("unmounted", None)),
        ("removed", None),
    ]
    kinds = {event.name: event for event in events.EVENTS}
    common = {"time", "level", "logger", "message", "volume", "event", "mount_id"}
    for line in found:
        assert line.keys() - common == kinds[line["event"]].fields().keys()
    created, died, replaced = found[0], found[4], found[5]
    assert created["options"] == {"cache": "never"}
    assert died["worker"] == found[2]["worker"]
    assert replaced["takeover_ms"] > 0
    assert replaced["worker"] == found[7]["worker"]


def test_a_volume_of_its_own_is_lost_and_mounted_again(service: Service) -> None:
    service.call("VolumeDriver.Create", Name="vol", Opts={"standby": "off"})
    service.call("VolumeDriver.Mount", Name="vol", ID="a")
    kill_worker(service)
    wait_for(service, "mount lost")
    service.call("VolumeDriver.Mount", Name="vol", ID="b")
    for mount_id in ("a", "b"):
        service.call("VolumeDriver.Unmount", Name="vol", ID=mount_id)
    service.call("VolumeDriver.Remove", Name="vol")

    place = "worker N, device N, session kernel"
    texts = [
        "created, source none, options standby=off",
        f"mounted, {place}, references 1, mount a",
        "mount lost: worker N was killed by SIGKILL; the volume fails until it is mounted again",
        "its mount is not whole, making a new one",
        f"mounted, {place}, references 2, mount b",
        "reference released, references 1, mount a",
        "unmounted, mount b",
        "removed, files deleted",
    ]
    assert told(service) == [f"volume vol: {text}" for text in texts]


def test_each_option_that_changes_is_one_event(service: Service) -> None:
    service.call("VolumeDriver.Create", Name="vol")
    assert passfs(service, "set", "vol", "readonly=true").returncode == 0
    service.call("VolumeDriver.Remove", Name="vol")

    assert [text.removeprefix("volume vol: ") for text in told(service)] == [
        "created, source none, options none",
        "option readonly changes from false to true, next mount",
        "removed, files deleted",
    ]


def test_a_guard_that_dies_is_one_event(service: Service) -> None:
    service.call("VolumeDriver.Create", Name="vol")
    service.call("VolumeDriver.Mount", Name="vol", ID="a")
    worker = int(status(service)["worker_pid"])
    wait_until(lambda: len(members(worker)) == 3)
    os.kill(max(members(worker) - {worker}), signal.SIGKILL)
    wait_for(service, "guard N has ended")
    service.call("VolumeDriver.Unmount", Name="vol", ID="a")

    assert [text for text in told(service) if "guard" in text] == [
        "volume vol: guard N has ended; another one follows"
    ]


@pytest.mark.slow
def test_without_a_service_manager_the_end_unmounts(tmp_path: Path) -> None:
    service = Service(tmp_path, environment={"PASSFS_LOG_FORMAT": "text"})
    service.start()
    service.call("VolumeDriver.Create", Name="vol")
    service.call("VolumeDriver.Mount", Name="vol", ID="a")
    service.end(signal.SIGTERM)
    service.start()
    service.call("VolumeDriver.Unmount", Name="vol", ID="a")
    service.end(signal.SIGTERM)

    assert [text.removeprefix("volume vol: ") for text in told(service)][2:] == [
        "unmounted",
        "its mount has ended with an earlier plugin, references 1",
        "reference released, references 0, mount a",
    ]


def test_texts_of_clients_forge_no_line(service: Service) -> None:
    """Names and mount ids of a client may have any characters, and any length."""
    evil = [EVIL, EVIL + "x" * 300_000, "\udcff\\"]
    service.call("VolumeDriver.Create", Name="vol")
    service.call("VolumeDriver.Mount", Name="vol", ID="a")
    for text in evil:
        service.call("VolumeDriver.Create", Name=text)
        service.call("VolumeDriver.Create", Name="new", Opts={"source": f"/no/{text}", text: text})
        service.call("VolumeDriver.Mount", Name="vol", ID=text)
        service.call("VolumeDriver.Unmount", Name="vol", ID=text)
        service.call("VolumeDriver.Remove", Name=text)
    service.call("VolumeDriver.Unmount", Name="vol", ID="a")
    service.call("VolumeDriver.Remove", Name="vol")

    data = service.log.read_bytes()
    assert b"\x1b" not in data
    lines = data.decode().split("\n")
    assert max(map(len, lines)) < 48 * 1024
    removed = [line for line in lines if re.search(r"^[A-Z]+ [\w.]+: volume vol: removed", line)]
    if service.environment["PASSFS_LOG_FORMAT"] == "json":
        objects = [json.loads(line) for line in lines if line]
        removed = [each for each in objects if each.get("event") == "removed"]
        refused = [each["volume"] for each in objects if each.get("event") == "create_refused"]
        assert refused[:2] == [EVIL, "new"]
    assert len(removed) == 1
    assert len(lines) == len({*lines})  # no part of a long line


@pytest.mark.parametrize("event", of_workers.EVENTS, ids=lambda event: event.name)
def test_the_plugin_reads_the_events_of_workers(event: of_workers.Event) -> None:
    by_form: dict[str, of_workers.Field] = {"d": 7, "g": 60.0, ".1f": 0.5, "": "was killed"}
    values = {name: by_form[form] for name, form in event.fields().items()}
    line = f"{of_workers.__name__}: {event.text.format(**values)}"

    assert of_workers.told(line) == (event, values)
    assert of_workers.told(line.replace("events:", "standby:")) is None


def test_the_table_of_events_has_unique_names() -> None:
    names: Sequence[str] = [event.name for event in events.EVENTS]
    assert len({*names}) == len(names)
