"""Access times of the host's files and directories, after reads through a volume."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from tests.support.tools.mounted import mounted
from tests.support.tools.mounts import MS_SHARED, mounted_on

LIMIT_S = 30.0
# An access before the last change, which relatime updates, and one after it.
OLD, RECENT = "old", "recent"
NONE: set[str] = set()
RELATIME = {"file old", "dir old"}
ALL = {*RELATIME, "file recent", "dir recent"}
FILES = {"file old", "file recent"}
READERS = {
    "passthrough": {"session": "kernel", "passthrough": "on"},
    "worker": {"session": "kernel", "passthrough": "off"},
    "libfuse": {"session": "libfuse"},
}


def prepare(directory: Path) -> None:
    """Make a file and a directory for each access time."""
    now = time.time()  # the time of the last change, ctime
    for age, accessed in ((OLD, now - 7200), (RECENT, now + 3600)):
        (directory / f"file {age}").write_text("content")
        (directory / f"dir {age}").mkdir()
        (directory / f"dir {age}" / "name").touch()
        for kind in ("file", "dir"):
            os.utime(directory / f"{kind} {age}", (accessed, now - 3600))


def updated(volume: Path, host: Path) -> set[str]:
    """Read everything below *volume*; return the names whose access time changes on the host."""
    before = {path.name: path.stat().st_atime_ns for path in host.iterdir()}
    for path in volume.iterdir():
        if path.is_dir():
            assert os.listdir(path) == ["name"]
        else:
            assert path.read_text() == "content"
    return {path.name for path in host.iterdir() if path.stat().st_atime_ns != before[path.name]}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, RELATIME),
        ({"noatime": ""}, NONE),
        ({"strictatime": ""}, ALL),
        ({"nodiratime": ""}, {"file old"}),
        ({"strictatime": "", "nodiratime": ""}, FILES),
    ],
    ids=str,
)
def test_the_volumes_flags_decide_on_the_hosts_access_times(
    base: Path, reader: Mapping[str, str], options: Mapping[str, str], expected: set[str]
) -> None:
    with mounted(base, {**reader, **options}) as served, served.limited(LIMIT_S):
        prepare(served.source)

        assert updated(served.mountpoint, served.source) == expected


@pytest.mark.parametrize("session", ["kernel", "libfuse"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"noatime": ""}, NONE),
        ({"noatime": "", "nodiratime": ""}, NONE),
        ({"strictatime": ""}, RELATIME),
        ({"nodiratime": ""}, RELATIME),
    ],
    ids=str,
)
def test_the_hosts_flags_decide_without_a_sandbox_unless_the_volume_has_noatime(
    base: Path, session: str, options: Mapping[str, str], expected: set[str]
) -> None:
    everything = {"session": session, "sandbox": "none", **options}
    with mounted(base, everything) as served, served.limited(LIMIT_S):
        prepare(served.source)

        assert updated(served.mountpoint, served.source) == expected


@pytest.mark.parametrize(("options", "expected"), [({}, NONE), ({"strictatime": ""}, ALL)], ids=str)
def test_a_disk_with_noatime_keeps_it_unless_the_volume_has_strictatime(
    base: Path, options: Mapping[str, str], expected: set[str]
) -> None:
    disk = base / "source" / "disk"
    disk.mkdir(parents=True)
    with (
        mounted_on(disk, "tmpfs", flags=syscalls.MS_NOATIME),
        mounted(base, options) as served,
        served.limited(LIMIT_S),
    ):
        prepare(disk)

        assert updated(served.mountpoint / "disk", disk) == expected


def test_a_mount_that_the_host_adds_later_keeps_its_flags(base: Path) -> None:
    source = base / "source"
    source.mkdir()
    with mounted_on(source, "tmpfs"):
        syscalls.mount(b"none", os.fsencode(source), b"", MS_SHARED, b"")
        with mounted(base, {"noatime": ""}) as served, served.limited(LIMIT_S):
            disk = source / "disk"
            disk.mkdir()
            with mounted_on(disk, "tmpfs"):
                prepare(disk)

                assert updated(served.mountpoint / "disk", disk) == RELATIME
