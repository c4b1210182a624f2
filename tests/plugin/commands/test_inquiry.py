"""`passfs ls` and `passfs status`, beside a plugin that runs as a process."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest

from plugin.commands import inquiry
from plugin.commands.asking import CommandError, Plugin
from plugin.protocol import HealthReply
from plugin.volume import VolumeName
from plugin.volumes.registry import Registry
from tests.support.fakes.hung import HungSource, is_opening
from tests.support.tools.callers import Caller
from tests.support.tools.commands import passfs, printed, processes_of, status, using
from tests.support.tools.processes import wait_until
from tests.support.tools.records import record
from tests.support.tools.service import Service, request, started

pytestmark = pytest.mark.full

COMMAND = (sys.executable, "-m", "plugin")
EVIL = "evil\x1b[31m\nname\u202eü"
SHOWN = r"evil\x1b[31m\nname\u202e" "ü"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A plugin with an idle volume, a mounted one, and one with a name that harms a terminal."""
    directory = tmp_path_factory.mktemp("commands")
    (directory / "data").mkdir()
    (directory / "source").mkdir()
    with Registry.open(directory / "data") as registry:
        registry.add(msgspec.structs.replace(record("evil"), name=VolumeName(EVIL)))
    with started(directory) as service:
        source = str(directory / "source")
        service.call("VolumeDriver.Create", Name="idle", Opts={"cache": "never"})
        service.call("VolumeDriver.Create", Name="vol", Opts={"source": source})
        service.call("VolumeDriver.Mount", Name="vol", ID="a-mount-id")
        # The guards are made, and the directory of the other volume is missed, a moment later.
        wait_until(lambda: len(processes_of(service, "vol")) == 3)
        wait_until(
            lambda: "error" in service.call("VolumeDriver.Get", Name=EVIL)["Volume"]["Status"]
        )
        yield service
        service.call("VolumeDriver.Unmount", Name="vol", ID="a-mount-id")


def on_terminal(service: Service, *arguments: str) -> str:
    """Return the output of a command on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    with closing(os.fdopen(ours, "rb", buffering=0)) as terminal:
        process = subprocess.Popen(
            [*COMMAND, *arguments, "--data-dir", str(service.directory / "data")],
            stdout=theirs,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
        )
        os.close(theirs)
        output = b""
        with suppress(OSError):  # EIO: the command has closed the terminal
            while part := terminal.read(4096):
                output += part
        assert process.wait(60) == 0
    return output.decode()


def test_ls_prints_a_line_for_each_volume(service: Service) -> None:
    data = service.directory / "data" / "volumes"
    assert [line.split() for line in printed(service, "ls").splitlines()] == [
        ["NAME", "SOURCE", "CACHE", "SESSION", "USERS", "HEALTH"],
        [SHOWN, str(data / "evil"), "auto", "kernel", "0", "error:", *line_of_evil(service)],
        ["idle", str(data / "idle"), "never", "kernel", "0", "idle"],
        ["vol", str(service.directory / "source"), "auto", "kernel", "1", "ok"],
    ]


def line_of_evil(service: Service) -> list[str]:
    """Return the words of the error of the volume whose directory is missing."""
    error = service.call("VolumeDriver.Get", Name=EVIL)["Volume"]["Status"]["error"]
    assert isinstance(error, str)
    return error.split()


def test_ls_on_a_terminal_is_a_table(service: Service) -> None:
    output = on_terminal(service, "ls")
    assert "\x1b[1m" in output  # rich's own
    assert "\x1b[31m" not in output
    assert "\u202e" not in output
    assert "evil\\x1" in re.sub(r"\x1b\[[\d;]*m", "", output)


def test_status_on_a_terminal_has_each_part(service: Service) -> None:
    output = re.sub(r"\x1b\[[\d;]*m", "", on_terminal(service, "status", "vol"))
    for words in ("health", "Processes", "a-mount-id", "Options in force", "posix_acl"):
        assert words in output


def test_json_has_all_in_ascii(service: Service) -> None:
    text = printed(service, "ls", "--json")
    assert text.isascii()
    evil, idle, vol = json.loads(text)
    assert (evil["name"], evil["health"]) == (EVIL, "error")
    assert (idle["own"], idle["health"], idle["users"]) == (True, "idle", 0)
    assert (vol["own"], vol["health"], vol["users"]) == (False, "ok", 1)


def test_status_has_processes_options_and_features(service: Service) -> None:
    found = status(service, "vol")
    described = service.call("VolumeDriver.Get", Name="vol")["Volume"]
    assert found["status"] == described["Status"]
    assert (found["state"], found["references"]) == ("mounted", {"a-mount-id": 1})
    worker, *guards = found["processes"]
    assert worker["pid"] == worker["pid_in_plugin"] == described["Status"]["worker_pid"]
    assert [guard["role"] for guard in guards] == ["guard", "guard"]
    for each in found["processes"]:
        assert os.getpgid(each["pid"]) == os.getpgid(worker["pid"])
        assert 0 <= each["uptime_s"] < 3600
        assert each["memory_bytes"] > 2**18
        assert each["descriptors"] > 3
    states = {each["name"]: each["state"] for each in found["features"]}
    assert states["posix_acl"] == states["max_pages"] == "on"
    assert states["writeback_cache"] == "off"
    reasons = {each["name"]: each["reason"] for each in found["features"]}
    assert reasons["writeback_cache"].endswith("with writeback")


def test_status_tells_the_owner_of_the_directory(service: Service) -> None:
    source = service.directory / "source"
    before = source.stat()
    os.chown(source, 0, 41_002)
    source.chmod(0o2770)
    try:
        assert status(service, "vol")["directory"] == {
            "uid": 0,
            "gid": 41_002,
            "user": "root",
            "group": "",
            "mode": "2770",
        }
        shown = " ".join(printed(service, "status", "vol").split())
        assert "belongs to 0:41002 (root:41002), mode 2770" in shown
    finally:
        os.chown(source, before.st_uid, before.st_gid)
        source.chmod(before.st_mode)


def test_status_knows_no_owner_of_a_missing_directory(service: Service) -> None:
    assert status(service, EVIL)["directory"] is None


def fail(service: Service, times: int) -> None:
    """Have *times* requests to `vol` fail: the kernel keeps no names of attributes."""
    for _ in range(times):
        with pytest.raises(OSError, match="No data"):
            os.getxattr(service.directory / "mounts" / "vol", "user.absent")


def test_status_has_requests_and_errors_with_their_rates(service: Service) -> None:
    fail(service, 3)
    plugin = Plugin(str(service.directory / "data"))
    found = inquiry.view(plugin, "vol", 1, pause=lambda _: fail(service, 40))
    assert found.measured_s is not None
    assert found.operations is not None
    assert found.errors is not None
    asked = {each.name: each for each in found.operations}["GETXATTR"]
    failed = {each.name: each for each in found.errors}["ENODATA"]
    assert failed.requests == asked.requests >= 43
    for rate in (asked.per_second, failed.per_second):
        assert rate is not None
        assert rate * found.measured_s == pytest.approx(40)
    assert asked.median_below_us is not None
    assert asked.p99_below_us is not None
    assert 0.256 <= asked.median_below_us <= asked.p99_below_us
    assert 0.1 < asked.mean_us < 1e7


def test_status_shows_requests_and_errors_as_tables(service: Service) -> None:
    fail(service, 1)
    measured = printed(service, "status", "vol", "--interval", "0.1").splitlines()
    first = measured.index("Requests:") + 1
    assert measured[first].split("  ")[0] == "OPERATION"
    assert {"MEAN", "MEDIAN", "P99", "PER"} <= {*measured[first].split()}
    (row,) = [line.split() for line in measured if line.startswith("GETXATTR")]
    assert re.fullmatch(
        r"\d+ \d+ [\d.]+ [nu]?m?s [\d.]+ [nu]?m?s [\d.]+ [nu]?m?s", " ".join(row[1:])
    )
    (row,) = [line.split() for line in measured if line.startswith("ENODATA")]
    assert row[2:] == ["0", "No", "data", "available"]
    found = status(service, "vol")
    assert found["measured_s"] is None
    assert {each["per_second"] for each in found["operations"]} == {None}


def test_status_has_the_files_and_data_of_the_volume(service: Service) -> None:
    file = service.directory / "mounts" / "vol" / "new"
    before = status(service, "vol")["numbers"]
    with file.open("wb"):
        found = status(service, "vol")["numbers"]
        lines = printed(service, "status", "vol", "--interval", "0").splitlines()
    assert found["opens"] == before["opens"] + 1
    assert found["open_files"] == before["open_files"] + 1
    assert found["inodes"] == before["inodes"] + 1
    shown = dict(line.split("  ", 1) for line in lines if "  " in line)
    assert shown["inodes"].strip() == str(found["inodes"])
    assert shown["open files"].strip().startswith(f"{found['open_files']}, ")
    assert f" of {found['opens']} opens: " in shown["passed through"]
    file.unlink()


@pytest.mark.parametrize("seconds", ["-1", "61", "nan", "x"])
def test_status_refuses_an_interval(service: Service, seconds: str) -> None:
    done = passfs(service, "status", "vol", "--interval", seconds)
    assert done.returncode == 2
    assert f"'--interval': '{seconds}' is not accepted; expected 0 to 60 seconds" in done.stderr


def test_a_volume_without_a_standby_has_features_and_one_with_libfuse_says_why_not(
    service: Service,
) -> None:
    for session in ("kernel", "libfuse"):
        options = {"session": session, "standby": "off"}
        service.call("VolumeDriver.Create", Name=session, Opts=options)
        service.call("VolumeDriver.Mount", Name=session, ID="i")
        text = printed(service, "status", session, "--interval", "0")
        service.call("VolumeDriver.Unmount", Name=session, ID="i")
        service.call("VolumeDriver.Remove", Name=session)
        assert ("max_pages" in text) == (session == "kernel")
        assert ("not known: libfuse has agreed on them" in text) == (session == "libfuse")


def test_status_of_an_idle_volume_has_no_process(service: Service) -> None:
    lines = printed(service, "status", "idle").splitlines()
    assert lines[:3] == ["volume       idle", "health       idle", "state        idle"]
    assert not {"Processes:", "Requests:", "Features of FUSE:"} & {*lines}
    found = status(service, "idle")
    assert (found["operations"], found["errors"], found["measured_s"]) == (None, None, None)


def test_status_shows_a_namespace_that_uses_the_volume(service: Service) -> None:
    with using(service, "vol") as pid:
        found = status(service, "vol")
    target = str(service.directory / "inner")
    assert found["users"] == [{"pid": pid, "command": "sh", "container": "", "target": target}]


def test_status_shows_the_users_of_a_dead_mount(service: Service) -> None:
    service.call("VolumeDriver.Create", Name="dead", Opts={"standby": "off"})
    service.call("VolumeDriver.Mount", Name="dead", ID="i")
    with using(service, "dead") as pid:
        os.kill(status(service, "dead")["processes"][0]["pid"], 9)
        wait_until(
            lambda: "error" in service.call("VolumeDriver.Get", Name="dead")["Volume"]["Status"]
        )
        found = status(service, "dead")
        shown = [line.split(maxsplit=1) for line in printed(service, "status", "dead").splitlines()]
    assert (found["health"], found["state"], found["processes"]) == ("lost", "lost", [])
    assert found["dead_references"] == {"i": 1}
    assert found["operations"] is None
    assert ["requests", "not known: the mount has ended"] in shown
    assert [user["pid"] for user in found["users"]] == [pid]
    service.call("VolumeDriver.Unmount", Name="dead", ID="i")
    service.call("VolumeDriver.Remove", Name="dead")


def test_status_without_a_volume_shows_the_plugin(service: Service) -> None:
    found = json.loads(printed(service, "status", "--json"))
    assert service.process is not None
    assert (found["volumes"], found["mounted"], found["lost"]) == (3, 1, 0)
    assert found["process"]["pid"] == service.process.pid
    assert f"plugin   {service.process.pid}" in printed(service, "status")


def test_a_volume_that_does_not_exist_is_refused(service: Service) -> None:
    done = passfs(service, "status", "no\x1b[31m")
    assert done.returncode == 1
    assert (done.stdout, done.stderr) == (
        "",
        "passfs status: no such volume: 'no\\x1b[31m'.\n",
    )


def test_a_name_that_is_not_utf_8_is_refused(service: Service) -> None:
    done = passfs(service, "status", os.fsdecode(b"\xff"))
    assert done.returncode == 1
    assert done.stderr.startswith("passfs status: ")
    assert "Traceback" not in done.stderr


def test_a_locale_without_utf_8_is_no_error(service: Service) -> None:
    done = subprocess.run(
        [*COMMAND, "ls", "--data-dir", str(service.directory / "data")],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert rb"\xfc" in done.stdout


@contextmanager
def hanging_mount(service: Service) -> Iterator[None]:
    """Have a Mount hang in its source during the block."""
    source = service.directory / "outer"
    (source / "far").mkdir(parents=True)
    service.call("VolumeDriver.Create", Name="far", Opts={"source": str(source / "far")})
    assert service.process is not None
    with closing(service.connect()) as client:
        with HungSource(source):
            client.sendall(request("VolumeDriver.Mount", Name="far", ID="i"))
            wait_until(partial(is_opening, service.process.pid))
            yield
        client.recv(4096)
    service.call("VolumeDriver.Remove", Name="far")


def test_a_source_that_hangs_delays_no_command(service: Service) -> None:
    with hanging_mount(service):
        lines = [line.split() for line in printed(service, "ls").splitlines()]
    assert ["busy:", "Mount,"] in [words[5:7] for words in lines]


def test_a_worker_that_hangs_delays_no_command(service: Service) -> None:
    before = status(service, "vol")
    pids = [each["pid"] for each in before["processes"]]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert status(service, "vol")["health"] == "ok"
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("command", [["ls"], ["status"], ["status", "vol"]], ids=" ".join)
def test_without_a_plugin_the_message_says_so(tmp_path: Path, command: list[str]) -> None:
    done = passfs(Service(tmp_path), *command)
    assert done.returncode == 1
    missing = f"no plugin listens at {tmp_path}/data/control.sock. Is passfs running?"
    assert done.stderr.startswith(f"passfs {command[0]}: {missing}")


def test_another_user_is_told_to_be_root(service: Service) -> None:
    def refusal() -> str:
        with pytest.raises(CommandError) as refused:
            Plugin(str(service.directory / "data")).ask("/health", HealthReply)
        return str(refused.value)

    assert Caller("user", 1000, 1000).run(refusal).endswith("run this command as root.")
