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
