"""A mount unit of systemd, as systemd makes one from a line of fstab(5)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tools.processes import lives, wait_until
from tests.support.tools.standalone import helper_in_sbin, run
from tests.support.tools.systemd import Systemd

pytestmark = [pytest.mark.full, pytest.mark.slow]


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """A systemd that finds the helper of mount(8)."""
    (tmp_path / "overlay").mkdir()
    (tmp_path / "own").mkdir()
    with helper_in_sbin(tmp_path / "overlay"), Systemd(tmp_path / "own") as systemd:
        yield systemd


def test_a_mount_unit_keeps_the_processes_until_it_stops(
    source: Path, mountpoint: Path, systemd: Systemd
) -> None:
    (source / "file").write_text("below")
    name = run("systemd-escape", "--path", "--suffix=mount", mountpoint).out.strip()
    unit = f"[Mount]\nWhat={source}\nWhere={mountpoint}\nType=fuse.passfs\nOptions=nofail,ro\n"
    (systemd.unit.parent / name).write_text(unit)
    systemd.control("daemon-reload")

    systemd.control("start", name)

    # The worker and two guards. The second guard comes a moment later.
    wait_until(lambda: len(of_unit(systemd, name)) >= 3)
    processes = of_unit(systemd, name)
    assert (systemd.inside(mountpoint) / "file").read_text() == "below"
    assert systemd.control("is-active", name) == "active\n"

    systemd.control("stop", name)

    wait_until(lambda: not any(map(lives, processes)))
    assert systemd.control("show", "--value", "--property=Result", name) == "success\n"


def of_unit(systemd: Systemd, name: str) -> set[int]:
    """Return the processes in the control group of a unit."""
    group = systemd.control("show", "--value", "--property=ControlGroup", name).strip()
    found = (systemd.inside(Path("/sys/fs/cgroup" + group)) / "cgroup.procs").read_text()
    return set(map(int, found.split()))
