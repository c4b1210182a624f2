"""The option log_level, beside a plugin that runs as a process: lines of the log of a mount."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from passthrough.worker import live
from tests.plugin.commands.test_changes import (
    SESSIONS,
    change,
    mount,
    mounted,
    status,
    unmount,
    volume,
)
from tests.support.fakes.service_manager import ServiceManager
from tests.support.tools.commands import processes_of
from tests.support.tools.processes import wait_until
from tests.support.tools.service import Service, started

pytestmark = pytest.mark.full

STANDBY = 3  # processes of a volume: the worker and two guards


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with started(tmp_path) as service:
        yield service


def lines(service: Service, text: str) -> list[str]:
    """Return the lines of the log about `vol` that have *text*."""
    found = service.log.read_text().splitlines()
    return [line for line in found if "volume vol: " in line and text in line]


def ask_for_an_attribute(service: Service) -> None:
    """Have a request fail with ENODATA."""
    with suppress(OSError):
        os.getxattr(service.directory / "mounts" / "vol" / "file", "user.none")


def remove_what_is_not_empty(service: Service) -> None:
    """Have a request fail with ENOTEMPTY."""
    directory = service.directory / "mounts" / "vol" / "directory"
    (directory / "inner").mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        directory.rmdir()


def is_told(service: Service) -> bool:
    """Have a request fail; return whether the log has a line about that."""
    ask_for_an_attribute(service)
    return bool(lines(service, "ENODATA"))


def kill_worker(service: Service) -> None:
    """Kill the worker, and wait for the next one."""
    wait_until(lambda: len(processes_of(service, "vol")) == STANDBY)
    before = status(service)["worker_pid"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: status(service)["worker_pid"] != before)


@SESSIONS
def test_the_level_changes_at_once(service: Service, session: str) -> None:
    with mounted(service, session=session):
        ask_for_an_attribute(service)
        assert change(service, "log_level=debug") == [("log_level", "auto", "debug", "now")]
        assert status(service)["options"]["log_level"] == "debug"
        assert "next_mount" not in status(service)
        wait_until(lambda: is_told(service))
        (line, *_) = lines(service, "ENODATA")
        assert line.startswith("DEBUG plugin.mounting.worker: volume vol: requests fail: ENODATA ")
        assert "GETXATTR" in line
        change(service, "--unset", "log_level")
        remove_what_is_not_empty(service)
        told = len(lines(service, "ENODATA"))
        change(service, "log_level=debug")
        wait_until(lambda: is_told(service) and len(lines(service, "ENODATA")) > told)
        assert not lines(service, "ENOTEMPTY")


@SESSIONS
def test_the_processes_of_a_mount_tell_of_their_lives(service: Service, session: str) -> None:
    with volume(service, session=session):
        mount(service)
        unmount(service)
        assert not lines(service, "DEBUG")
        change(service, "log_level=debug")
        mount(service)
        unmount(service)
        wait_until(lambda: bool(lines(service, "the session ends")))


def test_a_worker_that_follows_a_killed_one_has_the_level(service: Service) -> None:
    with mounted(service):
        change(service, "log_level=debug")
        kill_worker(service)
        wait_until(lambda: len(lines(service, "requests of the worker before go on")) == 1)
        assert len(lines(service, "took over")) == 1
        wait_until(lambda: is_told(service))
        # The plugin may read the line of the worker in between late, under the next level.
        assert any(between_is_left_out(service) for _ in range(3))
        assert len(lines(service, "go on")) == 1


def between_is_left_out(service: Service) -> bool:
    """Have one worker begin at level `error`, and one at `info`.

    Return whether the second one alone has told of that.
    """
    change(service, "log_level=error")
    kill_worker(service)
    between = status(service)["worker_pid"]
    change(service, "log_level=info")
    kill_worker(service)
    last = status(service)["worker_pid"]
    wait_until(lambda: bool(lines(service, f"worker {last} took over")))
    return not lines(service, f"worker {between} took over")


def test_a_mount_after_a_lost_one_has_the_level(service: Service) -> None:
    """Without a standby, the death of the worker ends the mount."""
    with mounted(service, session="libfuse"):
        change(service, "log_level=debug")
        os.kill(status(service)["worker_pid"], signal.SIGKILL)
        wait_until(lambda: bool(lines(service, "mount lost")))
        unmount(service)
        mount(service)
        wait_until(lambda: is_told(service))


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
@pytest.mark.parametrize("program", ["", "another"], ids=["restart", "upgrade"])
def test_a_plugin_that_follows_has_the_level(
    tmp_path: Path, manager: ServiceManager, end: signal.Signals, program: str
) -> None:
    """After an upgrade, another program serves the mount, and tells how it has come to that."""
    with started(tmp_path, manager) as service, mounted(service):
        change(service, "log_level=debug")
        service.end(end)
        if program:
            service.environment["PROGRAM"] = program
        service.start()
        wait_until(lambda: "program" not in status(service))
        assert bool(lines(service, "of the other program are copied")) is bool(program)
        wait_until(lambda: is_told(service))
        change(service, "log_level=warning")
        kill_worker(service)
        wait_until(lambda: bool(lines(service, "took over")))
        found = len(lines(service, "requests of the worker before go on"))
        assert found == bool(program)


def test_a_mount_of_an_older_program_takes_the_level(
    tmp_path: Path, manager: ServiceManager
) -> None:
    with started(tmp_path, manager) as service, mounted(service):
        os.pwrite(manager.stored["control1"], b"\0", live.VERSION_AT)
        found = change(service, "log_level=debug", "attr_timeout=1h")
        assert [each[0] for each in found if each[3] == "now"] == ["log_level"]
        wait_until(lambda: is_told(service))


def test_the_setting_of_the_plugin_is_the_default(tmp_path: Path) -> None:
    service = Service(tmp_path, environment={"PASSFS_LOG_LEVEL": "debug"})
    service.start()
    with mounted(service):
        wait_until(lambda: is_told(service))
        change(service, "log_level=info")
        kill_worker(service)
        wait_until(lambda: bool(lines(service, "took over")))
        assert not lines(service, "go on")
    service.end(signal.SIGTERM)


def test_the_level_of_a_volume_can_be_below_that_of_the_plugin(tmp_path: Path) -> None:
    service = Service(tmp_path, environment={"PASSFS_LOG_LEVEL": "error"})
    service.start()
    with mounted(service, log_level="debug"):
        wait_until(lambda: is_told(service))
        kill_worker(service)
        wait_until(lambda: bool(lines(service, "took over")))
        assert not lines(service, "mounted, worker")
    service.end(signal.SIGTERM)
