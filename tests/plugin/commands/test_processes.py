"""processes.py: the ids on the host of processes in a plugin's pid namespace."""

import os
import signal
from pathlib import Path

import pytest

from plugin.commands import processes
from tests.support.tools.commands import processes_of
from tests.support.tools.processes import wait_until
from tests.support.tools.service import Service

pytestmark = pytest.mark.full

# The plugin of a managed installation has a pid namespace of its own. Its first process must end
# with the program unshare(1).
NAMESPACES = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def test_a_plugin_in_a_pid_namespace_of_its_own(tmp_path: Path) -> None:
    service = Service(tmp_path, within=NAMESPACES)
    service.start()
    try:
        service.call("VolumeDriver.Create", Name="vol")
        service.call("VolumeDriver.Mount", Name="vol", ID="i")
        wait_until(lambda: len(processes_of(service, "vol")) == 3)
        found = processes_of(service, "vol")
    finally:
        service.end(signal.SIGKILL)
    assert [each["role"] for each in found] == ["worker", "guard", "guard"]
    for each in found:
        assert each["pid"] > 0
        assert each["pid"] != each["pid_in_plugin"]
        assert each["memory_bytes"] > 0


def test_a_plugin_that_is_not_visible_has_no_ids() -> None:
    """The kernel reports the id 0 for a process outside of the caller's pid namespace."""
    assert processes.on_host(0, {1}) == {}
    assert processes.described("worker", 0, 7).pid_in_plugin == 7


def test_the_ids_of_the_same_namespace_are_the_same() -> None:
    pid = os.getpid()
    assert processes.on_host(pid, {pid}) == {pid: pid}


# The host has the volume at /run/m/vol. Each other namespace has one entry, with its parent.
HOST = """\
20 1 8:1 / / rw shared:1 - ext4 /dev/sda rw
30 20 0:52 / /run/m/vol rw shared:7 - fuse.passfs passfs rw
"""
NAMESPACES_OF_OTHERS = {
    "a container": ("/data", "40 1 0:60 / / rw - overlay o rw\n50 40 0:52 / /data rw -"),
    "a copy that goes with the host's": (
        "",
        (
            "40 1 8:1 / /host rw master:1 - ext4 /dev/sda rw\n"
            "50 40 0:52 / /host/run/m/vol rw master:7 -"
        ),
    ),
    "a copy that stays": (
        "/host/run/m/vol",
        "40 1 8:1 / /host rw - ext4 /dev/sda rw\n50 40 0:52 / /host/run/m/vol rw -",
    ),
    "a copy below another root": (
        "",
        "40 1 8:1 /run /r rw master:1 - ext4 /dev/sda rw\n50 40 0:52 / /r/m/vol rw master:7 -",
    ),
    "another volume": ("", "40 1 0:60 / / rw - overlay o rw\n50 40 0:53 / /data rw -"),
}


@pytest.mark.parametrize("name", NAMESPACES_OF_OTHERS)
def test_a_user_is_a_namespace_that_keeps_the_mount(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, table = NAMESPACES_OF_OTHERS[name]
    own = os.getpid()
    for pid, mounts in ((own, HOST), (7, f"{table} fuse.passfs passfs rw\n")):
        directory = tmp_path / str(pid)
        (directory / "ns").mkdir(parents=True)
        (directory / "ns" / "mnt").symlink_to(f"mnt:[{pid}]")
        (directory / "mountinfo").write_text(mounts)
        (directory / "comm").write_text("program\n")
        (directory / "cgroup").write_text(f"0::/docker-{'ab' * 32}.scope\n")
    monkeypatch.setattr(processes, "PROC", tmp_path)
    found = processes.users(own, "0:52")
    user = processes.User(pid=7, command="program", container="abababababab", target=target)
    assert found == ([user] if target else [])
