"""status.py: a volume is described with any report of its worker."""

import json
from pathlib import Path
from typing import cast

from passthrough.options.choices import InodeFileHandles
from passthrough.options.table import Requested
from passthrough.worker.handover import Report
from plugin.admin.host import HostFacts
from plugin.admin.policy import Policy
from plugin.mounting.keeper import Keeper
from plugin.volume import Event, FileName, Volume, VolumeName
from plugin.volumes.status import Status
from tests.support.tools.options import RELEASE
from tests.support.tools.records import record


class OneMount:
    """A keeper of one mount with the worker's *report*."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def report(self, _: VolumeName) -> Report:
        return self._report

    def worker_pid(self, _: VolumeName) -> int:
        return 7

    def target(self, directory: FileName) -> Path:
        return Path("/mnt") / directory


def test_a_mount_of_an_older_passfs_with_options_refused_now_is_described() -> None:
    """Its worker serves on until the next Mount; if Get failed, dockerd would forget the volume."""
    config = Requested(inode_file_handles=InodeFileHandles.MANDATORY)
    report = Report(serving=True, config=config, without_handles="there are none")
    volume = Volume(record("vol"))
    volume.apply(Event.MOUNT)
    keeper = cast("Keeper", OneMount(report))
    status = Status(keeper, Policy(RELEASE), HostFacts(data_dir=Path("/data")))
    described = json.loads(status.describe(volume, "").encode())["Status"]
    assert described["mounted"] is True
    assert described["worker_pid_in_plugin"] == 7
    assert described["data"] == "/data/volumes/vol"
    assert described["options"]["inode_file_handles"] == "mandatory"
    assert "there are none" in described["error"]
