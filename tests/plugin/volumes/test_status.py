"""status.py: a volume is described with any report of its worker."""

import json
from pathlib import Path
from typing import Any, cast

from passthrough.options.choices import InodeFileHandles, Locks
from passthrough.options.table import Requested
from passthrough.worker.handover import Report
from plugin.admin.host import HostFacts
from plugin.admin.policy import Policy
from plugin.mounting.keeper import Keeper
from plugin.mounting.standby import Deaths
from plugin.volume import Event, FileName, Volume, VolumeName
from plugin.volumes.status import Status
from tests.support.tools.options import RELEASE
from tests.support.tools.records import record


class OneMount:
    """A keeper of one mount with the worker's *report*, and *deaths* of earlier workers."""

    def __init__(self, report: Report, deaths: Deaths | None, note: str = "") -> None:
        self._report = report
        self._note = note
        self._deaths = deaths

    def report(self, _: VolumeName) -> Report:
        return self._report

    def worker_pid(self, _: VolumeName) -> int:
        return 7

    def deaths(self, _: VolumeName) -> Deaths | None:
        return self._deaths

    def program_note(self, _: VolumeName) -> str:
        return self._note

    def target(self, directory: FileName) -> Path:
        return Path("/mnt") / directory


def described_with(
    config: Requested, without_handles: str = "", deaths: Deaths | None = None, note: str = ""
) -> dict[str, Any]:
    """Return the Status of a volume that a worker serves with *config*."""
    report = Report(serving=True, config=config, without_handles=without_handles)
    volume = Volume(record("vol"))
    volume.apply(Event.MOUNT)
    keeper = cast("Keeper", OneMount(report, deaths, note))
    status = Status(keeper, Policy(RELEASE), HostFacts(data_dir=Path("/data")))
    described = json.loads(status.describe(volume, "").encode())["Status"]
    return cast("dict[str, Any]", described)


def test_a_mount_of_an_older_passfs_shows_where_its_locks_are() -> None:
    """A volume without a source has local locks only from its next mount on."""
    assert described_with(Requested())["options"]["locks"] == "host"
    assert described_with(Requested(locks=Locks.LOCAL))["options"]["locks"] == "local"


def test_an_older_program_is_shown_with_the_reason() -> None:
    described = described_with(Requested(), note="it has no standby")
    assert described["program"] == "older: it has no standby"
    assert "program" not in described_with(Requested())


def test_a_mount_of_an_older_passfs_with_options_refused_now_is_described() -> None:
    """Its worker serves on until the next Mount; if Get failed, dockerd would forget the volume."""
    config = Requested(inode_file_handles=InodeFileHandles.MANDATORY)
    described = described_with(config, without_handles="there are none")
    assert described["mounted"] is True
    assert described["worker_pid_in_plugin"] == 7
    assert described["data"] == "/data/volumes/vol"
    assert described["options"]["inode_file_handles"] == "mandatory"
    assert "there are none" in described["error"]


def test_the_standby_and_the_deaths_of_workers_are_shown() -> None:
    assert "deaths" not in described_with(Requested())
    described = described_with(Requested(), deaths=Deaths("ready", 0, ""))
    assert (described["standby"], described["deaths"]) == ("ready", 0)
    assert "last_death" not in described
    described = described_with(Requested(), deaths=Deaths("missing", 2, "then, so"))
    assert (described["standby"], described["deaths"]) == ("missing", 2)
    assert described["last_death"] == "then, so"


def test_a_mount_without_a_standby_has_the_reason() -> None:
    described = described_with(Requested())
    assert described["standby"] == "off: this mount has none; the log of its worker says why"
    described = described_with(Requested(), note="it has no standby")
    assert described["standby"] == "off: this mount has none; an older program made it"
