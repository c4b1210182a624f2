"""The table in docs/survival.md: each test kills something while a container uses a volume.

tests/engine/test_restarts.py ends and kills the engine.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from docker.models.containers import Container
from docker.models.volumes import Volume

from tests.support.tools.busy import Busy
from tests.support.tools.driver import CONNECTION_ENDED, Driver, outcome
from tests.support.tools.processes import kill_all, lives, members, parent

WITHIN_S = 20.0
PROCESSES = 3
"""The worker and two guards."""


def until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < limit, condition
        time.sleep(0.02)


@contextmanager
def in_use(driver: Driver) -> Iterator[tuple[Volume, Container, Busy]]:
    """Run a container that is busy with a new volume, which has a standby."""
    with driver.volume(standby="on") as volume:
        with driver.container(volume) as container:
            busy = Busy(container)
            until(lambda: len(members(worker_of(driver, volume))) == PROCESSES)
            yield volume, container, busy
        assert driver.run(volume, "echo new > /data/new; cat /data/new") == "new\n"
    assert driver.file_systems(volume) == set()


def worker_of(driver: Driver, volume: Volume) -> int:
    """Return the worker: a process id of the host, also with a managed plugin."""
    pid = driver.status(volume)["worker_pid"]
    assert Path(f"/proc/{pid}/comm").read_bytes().startswith(b"passfs:")
    assert isinstance(pid, int)
    return pid


def have_ended(pids: set[int]) -> bool:
    return not any(map(lives, pids))


def fork_server_of(driver: Driver, volume: Volume) -> int:
    first = os.getpgid(worker_of(driver, volume))
    pid = parent(first)
    assert Path(f"/proc/{pid}/comm").read_text() == "passfs-forks\n"
    return pid


def fails(container: Container) -> bool:
    """Return whether the volume fails in *container*; it must not hang."""
    code, text = outcome(container, "timeout 20 ls /data")
    assert code in {0, 2}, text
    assert code == 0 or any(error in text for error in CONNECTION_ENDED), text
    return bool(code)


def test_a_container_does_not_notice_the_death_of_a_worker(driver: Driver) -> None:
    with in_use(driver) as (volume, _, busy):
        assert driver.status(volume)["deaths"] == 0
        for number in (1, 2, 3):
            pid = worker_of(driver, volume)
            os.kill(pid, signal.SIGKILL)
            busy.go_on()
            assert driver.status(volume)["deaths"] == number
            assert worker_of(driver, volume) != pid
        status = driver.status(volume)
        assert (status["mounted"], status["standby"]) == (True, "ready")
        assert status["last_death"].endswith("was killed by SIGKILL")
        assert "error" not in status


@pytest.mark.parametrize("first", [True, False])
def test_a_container_does_not_notice_the_death_of_a_guard(driver: Driver, *, first: bool) -> None:
    """The other guard makes a new one. With it, the volume survives the next death."""
    with in_use(driver) as (volume, _, busy):
        worker = worker_of(driver, volume)
        others = members(worker) - {worker, os.getpgid(worker)}
        (guard,) = {os.getpgid(worker)} if first else others
        os.kill(guard, signal.SIGKILL)
        busy.go_on()
        until(lambda: len(members(worker)) == PROCESSES and not lives(guard))
        assert driver.status(volume)["deaths"] == 0
        os.kill(worker, signal.SIGKILL)
        busy.go_on()
        assert driver.status(volume)["standby"] == "ready"


def test_without_guards_a_volume_fails_with_its_worker(driver: Driver) -> None:
    """Until then the worker serves, and Status has a warning."""
    with in_use(driver) as (volume, container, busy):
        worker = worker_of(driver, volume)
        guards = members(worker) - {worker}
        for number in (signal.SIGSTOP, signal.SIGKILL):  # otherwise one replaces the other
            for pid in guards:
                os.kill(pid, number)
        until(lambda: driver.status(volume)["standby"] == "missing")
        busy.go_on()
        os.kill(worker, signal.SIGKILL)
        until(lambda: not driver.status(volume)["mounted"])
        assert fails(container)
        assert "its worker" in driver.status(volume)["error"]


def test_a_volume_fails_if_all_its_processes_die(driver: Driver) -> None:
    with in_use(driver) as (volume, container, _):
        kill_all(worker_of(driver, volume))
        until(lambda: not driver.status(volume)["mounted"])
        assert fails(container)


def test_a_container_does_not_notice_the_death_of_the_fork_server(driver: Driver) -> None:
    """The next mount begins another one."""
    with in_use(driver) as (volume, _, busy):
        os.kill(fork_server_of(driver, volume), signal.SIGKILL)
        busy.go_on()
        with driver.volume() as other:
            assert driver.run(other, "echo new > /data/new; cat /data/new") == "new\n"
        os.kill(worker_of(driver, volume), signal.SIGKILL)
        busy.go_on()


@pytest.mark.parametrize("driver", ["host"], indirect=True)
def test_a_container_does_not_notice_a_crash_of_the_service(driver: Driver) -> None:
    """The next plugin knows the worker, and sees what happens to it."""
    with in_use(driver) as (volume, _, busy):
        fork_server = fork_server_of(driver, volume)
        driver.crash(parent(fork_server))
        busy.go_on()
        until(lambda: not lives(fork_server))
        os.kill(worker_of(driver, volume), signal.SIGKILL)
        busy.go_on()
        status = driver.status(volume)
        assert (status["deaths"], status["standby"]) == (1, "ready")


@pytest.mark.parametrize("driver", ["host"], indirect=True)
def test_a_container_does_not_notice_an_upgrade_of_the_service(driver: Driver) -> None:
    """Its volume gets processes of the new program, with a standby."""
    assert driver.upgrade is not None
    with in_use(driver) as (volume, _, busy):
        for program in ("one", "two", "three"):
            before = members(worker_of(driver, volume))
            driver.upgrade(program)
            busy.go_on()
            until(lambda: "program" not in driver.status(volume))
            until(partial(have_ended, before))
            busy.go_on()
        until(lambda: len(members(worker_of(driver, volume))) == PROCESSES)
        os.kill(worker_of(driver, volume), signal.SIGKILL)
        busy.go_on()
        assert driver.status(volume)["standby"] == "ready"


@pytest.mark.parametrize("driver", ["managed"], indirect=True)
def test_a_crash_of_the_managed_plugin_ends_its_mounts(driver: Driver) -> None:
    """The kernel kills all processes of the pid namespace; the engine starts the plugin again."""
    with in_use(driver) as (volume, container, _):
        fork_server = fork_server_of(driver, volume)
        driver.crash(parent(fork_server))
        until(lambda: not lives(fork_server))
        until(lambda: is_unmounted(driver, volume))
        assert fails(container)


@pytest.mark.parametrize("driver", ["managed"], indirect=True)
def test_a_disabled_plugin_has_no_mounts(driver: Driver) -> None:
    with in_use(driver) as (volume, container, _):
        driver.restart()
        assert not driver.status(volume)["mounted"]
        assert fails(container)


def is_unmounted(driver: Driver, volume: Volume) -> bool:
    """Return whether the plugin answers, and *volume* is not mounted."""
    try:
        return not driver.status(volume)["mounted"]
    except (KeyError, TypeError, OSError):  # docker-py's errors are OSErrors
        return False


def test_the_out_of_memory_killer_prefers_the_worker_to_its_guards(driver: Driver) -> None:
    with in_use(driver) as (volume, container, busy):
        until(lambda: is_preferred(worker_of(driver, volume)))
        os.kill(worker_of(driver, volume), signal.SIGKILL)
        busy.go_on()
        until(lambda: is_preferred(worker_of(driver, volume)))
        assert not fails(container)


def is_preferred(worker: int) -> bool:
    others = members(worker) - {worker}
    return all(oom_score_adj(worker) > oom_score_adj(pid) for pid in others)


def oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@pytest.mark.parametrize("driver", ["managed"], indirect=True)
def test_the_managed_plugin_reaps_orphans(driver: Driver) -> None:
    """On the host, init reaps them."""
    with in_use(driver) as (volume, _, busy):
        dead = members(worker_of(driver, volume))
        for _ in "123":
            first = os.getpgid(worker_of(driver, volume))
            if lives(first):
                os.kill(first, signal.SIGKILL)
            os.kill(worker_of(driver, volume), signal.SIGKILL)
            busy.go_on()
            dead |= members(worker_of(driver, volume))
        alive = members(worker_of(driver, volume))
        until(lambda: not [pid for pid in dead - alive if Path(f"/proc/{pid}").exists()])
