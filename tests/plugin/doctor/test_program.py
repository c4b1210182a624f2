"""`passfs doctor` as a program, on machines with a fault."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from passthrough.linux import mountinfo, syscalls
from plugin.doctor.examination import CHECKS
from plugin.doctor.finding import State
from tests.support.fakes.hung import HungSource
from tests.support.tools.doctor import NO_ENGINE, Examined, examined, executed
from tests.support.tools.mounts import mounted_on, mounts_at
from tests.support.tools.processes import wait_until
from tests.support.tools.service import Service, started

pytestmark = pytest.mark.full

COMMAND = (sys.executable, "-m", "plugin", "doctor", "--data-dir")
WITHIN = ("unshare", "--mount", "sh", "-c")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Yield a plugin with a mounted volume that has a source, and one without."""
    directory = tmp_path_factory.mktemp("doctor")
    source = directory / "source"
    source.mkdir()
    with started(directory) as service:
        service.call("VolumeDriver.Create", Name="own")
        service.call("VolumeDriver.Create", Name="db", Opts={"source": str(source)})
        for name in ("own", "db"):
            service.call("VolumeDriver.Mount", Name=name, ID="i")
        yield service
        for name in ("own", "db"):
            service.call("VolumeDriver.Unmount", Name=name, ID="i")


def data(service: Service) -> Path:
    return service.directory / "data"


def found(result: Examined, check: str) -> tuple[State, str]:
    """Return the state of a check, and what it has found."""
    return result.findings[check].state, result.findings[check].found


def test_a_plugin_that_works_has_no_error(service: Service) -> None:
    result = examined(data(service))
    assert (result.status, result.errors) == (0, "")
    assert [*result.findings] == [check.name for check in CHECKS]
    bad = {State.ERROR, State.WARNING}
    # The machine of the tests decides these.
    left_out = {"propagation", "dead mounts", "threads", "data directory", "open files"}
    assert {
        name: each
        for name, each in result.findings.items()
        if each.state in bad and name not in left_out
    } == {}
    assert service.process is not None
    text = f"passfs serve, process {service.process.pid}; volumes: 2, mounted: 2"
    assert found(result, "plugin") == (State.OK, text)
    assert found(result, "hidden sources")[1].startswith("checked: 2, each with the directory")
    assert found(result, "mounts on the host")[1].startswith("mounts: 2, all visible")
    assert found(result, "version")[0] is State.OK
    for each in result.findings.values():
        assert (each.state is State.OK) == (not each.meaning and not each.remedy), each


def test_the_examination_leaves_nothing(tmp_path: Path) -> None:
    before = mountinfo.read()
    assert examined(tmp_path / "none").findings["FUSE"].state is State.OK
    assert mountinfo.read() == before
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_engine_and_plugin_has_no_error_and_the_ways_to_install(
    tmp_path: Path,
) -> None:
    result = examined(tmp_path / "none", within=("env",))
    assert result.status == 0
    assert found(result, "plugin") == (State.WARNING, "passfs is not installed")
    assert result.findings["plugin"].remedy.startswith("passfs install, or")
    assert result.findings["engine"].remedy.startswith("apt-get install docker.io")
    assert examined(tmp_path / "none", "--strict").status == 1


def test_plain_text_in_a_pipe_has_a_line_for_each_check(tmp_path: Path) -> None:
    done = executed(*COMMAND, str(tmp_path / "none"))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["CHECK", "STATE", "FOUND"]
    assert [line.partition("  ")[0] for line in lines[1 : len(CHECKS) + 1]] == [
        check.name for check in CHECKS
    ]
    assert "plugin (warning):" in lines
    assert lines[-1].startswith("result  ")


def test_a_table_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with closing(os.fdopen(ours, "rb", buffering=0)) as terminal:
        process = subprocess.Popen(
            [*COMMAND, str(tmp_path / "none")],
            stdout=theirs,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "DOCKER_HOST": NO_ENGINE},
        )
        os.close(theirs)
        output = b""
        with suppress(OSError):  # EIO: the command has closed the terminal
            while part := terminal.read(4096):
                output += part
        assert process.wait(60) == 0
    assert b"\x1b[1m" in output
    text = re.sub(r"\x1b\[[\d;]*m", "", output.decode())
    assert "passfs is not installed" in text
    assert "───" in text


def test_a_device_that_is_not_fuse_is_an_error(tmp_path: Path) -> None:
    bind = 'mount --bind /dev/null /dev/fuse && exec "$0" "$@"'
    result = examined(tmp_path, within=(*WITHIN, bind))
    assert result.status == 1
    assert found(result, "/dev/fuse") == (State.ERROR, "/dev/fuse is not the device of FUSE")
    assert result.findings["FUSE"].state is State.WARNING


def test_a_machine_without_the_device_is_an_error(tmp_path: Path) -> None:
    bind = 'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$0" "$@"'
    result = examined(tmp_path, within=(*WITHIN, bind))
    assert result.status == 1
    assert found(result, "/dev/fuse") == (
        State.ERROR,
        "/dev/fuse: No such file or directory",
    )


@pytest.mark.parametrize(
    ("capability", "state", "status"),
    [("sys_admin", State.ERROR, 1), ("sys_chroot", State.WARNING, 0), ("chown", State.WARNING, 0)],
)
def test_a_missing_capability(tmp_path: Path, capability: str, state: State, status: int) -> None:
    drop = ("setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}")
    result = examined(tmp_path, within=drop)
    assert result.status == status
    lacking = f"this process lacks CAP_{capability.upper()}"
    assert found(result, "capabilities") == (state, lacking)


def test_a_plugin_with_a_low_limit_of_descriptors_and_no_capability_for_a_standby(
    tmp_path: Path,
) -> None:
    within = ("prlimit", "--nofile=1000:1000", "setpriv", "--bounding-set=-sys_chroot")
    service = Service(tmp_path, within=within)
    service.start()
    try:
        result = examined(data(service))
    finally:
        service.end(signal.SIGTERM)
    assert result.status == 0
    assert found(result, "open files") == (
        State.WARNING,
        "the plugin and each worker may open 1000",
    )
    assert found(result, "capabilities") == (State.WARNING, "the plugin lacks CAP_SYS_CHROOT")


def test_another_user_is_told_what_was_not_checked(base: Path) -> None:
    within = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
    result = examined(base, within=within)
    assert result.status == 0
    assert found(result, "user") == (State.WARNING, "user 1000")
    unchecked = {
        name for name, each in result.findings.items() if each.found.startswith("not checked")
    }
    assert {"FUSE", "sandbox"} <= unchecked


def test_another_user_takes_no_healthy_mount_for_a_dead_one(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    service = Service(tmp_path)
    service.start()
    try:
        service.call("VolumeDriver.Create", Name="vol")
        service.call("VolumeDriver.Mount", Name="vol", ID="i")
        within = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
        result = examined(tmp_path, within=within)
    finally:
        service.end(signal.SIGTERM)
    assert found(result, "dead mounts")[0] is State.WARNING
    assert found(result, "dead mounts")[1].startswith("not checked: ")


def test_private_mounts_are_found(tmp_path: Path) -> None:
    private = ("unshare", "--mount", "--propagation=private")
    shared = ("unshare", "--mount", "--propagation=shared")
    result = examined(tmp_path, within=private)
    assert (result.status, result.findings["propagation"].state) == (0, State.WARNING)
    assert "mount --make-rshared /" in result.findings["propagation"].remedy
    assert examined(tmp_path, within=shared).findings["propagation"].state is State.OK


def test_the_mounts_of_a_killed_plugin_are_dead(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.start()
    service.call("VolumeDriver.Create", Name="vol")
    service.call("VolumeDriver.Mount", Name="vol", ID="i")
    service.end(signal.SIGKILL)
    target = tmp_path / "mounts" / "vol"
    try:
        wait_until(lambda: found(examined(data(service)), "dead mounts")[0] is State.WARNING)
        result = examined(data(service))
    finally:
        syscalls.umount2(bytes(target), syscalls.MNT_DETACH)
    assert result.status == 1  # a registry, and no plugin
    assert str(target) in found(result, "dead mounts")[1]
    assert "umount -l" in result.findings["dead mounts"].remedy
    assert found(result, "plugin")[0] is State.ERROR


def test_a_source_that_a_mount_hides(service: Service) -> None:
    assert found(examined(data(service)), "hidden sources")[0] is State.OK
    source = service.directory / "source"
    with mounted_on(source, "tmpfs"):
        result = examined(data(service))
    assert result.status == 0
    state, text = found(result, "hidden sources")
    assert (state, f"db ({source})" in text, "own" in text) == (State.WARNING, True, False)


def test_a_directory_of_the_data_directory_that_a_mount_hides(service: Service) -> None:
    own = data(service) / "volumes" / "own"
    with mounted_on(own, "tmpfs"):
        state, text = found(examined(data(service)), "hidden sources")
    assert (state, f"own ({own})" in text, "db" in text) == (State.WARNING, True, False)


def test_a_source_behind_a_symbolic_link_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "real" / "source").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with started(tmp_path) as service:
        opts = {"source": str(tmp_path / "link" / "source")}
        service.call("VolumeDriver.Create", Name="vol", Opts=opts)
        service.call("VolumeDriver.Mount", Name="vol", ID="i")
        result = examined(data(service))
        service.call("VolumeDriver.Unmount", Name="vol", ID="i")
    assert found(result, "hidden sources")[0] is State.OK


def test_a_lost_volume_is_an_error(tmp_path: Path) -> None:
    with started(tmp_path) as service:
        service.call("VolumeDriver.Create", Name="vol", Opts={"standby": "off"})
        service.call("VolumeDriver.Mount", Name="vol", ID="i")
        status = service.call("VolumeDriver.Get", Name="vol")["Volume"]["Status"]
        os.kill(status["worker_pid"], signal.SIGKILL)
        wait_until(lambda: found(examined(data(service)), "volumes")[0] is State.ERROR)
        result = examined(data(service))
        service.call("VolumeDriver.Unmount", Name="vol", ID="i")
    assert result.status == 1
    assert found(result, "volumes")[1] == "1 of 1 with an error: vol (lost)"
    assert found(result, "passfs check")[0] is State.WARNING


def test_a_source_that_is_gone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with started(tmp_path) as service:
        service.call("VolumeDriver.Create", Name="vol", Opts={"source": str(tmp_path / "source")})
        (tmp_path / "source").rmdir()
        result = examined(data(service))
    assert result.status == 1
    state, text = found(result, "passfs check")
    assert (state, text.startswith("findings: 1, such as vol: it cannot be mounted")) == (
        State.ERROR,
        True,
    )


@pytest.mark.slow
def test_a_data_directory_that_hangs_is_an_error_in_time(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with HungSource(tmp_path / "server"):
        began = time.monotonic()
        result = examined(tmp_path / "server" / "data")
        assert time.monotonic() - began < 45
    assert result.status == 1
    assert found(result, "data directory") == (
        State.ERROR,
        "not checked: no answer within 10 s",
    )


def test_a_worker_that_hangs_delays_no_check(service: Service) -> None:
    pids = [
        service.call("VolumeDriver.Get", Name=name)["Volume"]["Status"]["worker_pid"]
        for name in ("own", "db")
    ]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        result = examined(data(service))
        assert time.monotonic() - began < 20
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert found(result, "hidden sources")[0] is State.OK
    assert all("no answer" not in each.found for each in result.findings.values())


def test_a_plugin_in_a_pid_namespace_of_its_own(tmp_path: Path) -> None:
    """A managed plugin has one: the ids of its workers are not those of the host."""
    service = Service(tmp_path, within=("unshare", "--pid", "--fork", "--kill-child"))
    service.start()
    try:
        service.call("VolumeDriver.Create", Name="vol")
        service.call("VolumeDriver.Mount", Name="vol", ID="i")
        result = examined(data(service))
        service.call("VolumeDriver.Unmount", Name="vol", ID="i")
    finally:
        service.end(signal.SIGKILL)
    assert result.status == 0
    assert service.process is None
    assert found(result, "capabilities")[1].startswith("the plugin has all")
    assert found(result, "hidden sources") == (
        State.OK,
        "checked: 1, each with the directory at its path",
    )


def test_mounts_in_a_mount_namespace_of_the_plugin_are_an_error(tmp_path: Path) -> None:
    service = Service(tmp_path, within=("unshare", "--mount", "--propagation=private"))
    service.start()
    try:
        service.call("VolumeDriver.Create", Name="vol")
        service.call("VolumeDriver.Mount", Name="vol", ID="i")
        assert mounts_at(tmp_path / "mounts" / "vol") == []
        result = examined(data(service))
        service.call("VolumeDriver.Unmount", Name="vol", ID="i")
    finally:
        service.end(signal.SIGTERM)
    assert result.status == 1
    state, text = found(result, "mounts on the host")
    # Its namespace has copies of the other plugins' mounts.
    assert (state, text[:30]) == (State.ERROR, "not visible on the host: 1 of ")
