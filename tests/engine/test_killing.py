"""Containers run, start and stop, while the service or the workers are killed again and again.

A hundred rounds, by hand:

    PASSFS_STANDBY_ROUNDS=100 make test ARGS='tests/engine/test_killing.py -rP'
"""

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from docker.models.volumes import Volume

from tests.standby.killing import Killing
from tests.standby.volume import descendants, is_alive, kill, targets
from tests.support.tools.busy import Busy
from tests.support.tools.driver import Driver, execute
from tests.support.tools.members import Members
from tests.support.tools.processes import children, parent, wait_until
from tests.support.tools.starts import Starts

CRASHES = int(os.environ.get("PASSFS_STANDBY_ROUNDS", "5"))
ROUNDS = int(os.environ.get("PASSFS_STANDBY_ROUNDS", "6"))
SEED = os.environ.get("PASSFS_STANDBY_SEED", "0")
ROUND_S, SETUP_S = 5.0, 1200.0
LONGEST_PAUSE_S = 0.3
SETTLED_S = 20.0
# The engine repeats a request that the dead plugin had begun, without its body. So a Mount is
# refused, or a Get, after which the engine takes the volume for unknown. It then asks all drivers.
# It does not repeat a request of which it has half an answer.
INTERRUPTED = re.compile(
    "the request's body is empty|the volume was not found in the driver|no such volume|EOF"
)


def service() -> int:
    """Return the process id of the service, among the children of this process."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text() for pid in children() if is_alive(pid)}
    (pid,) = (
        pid
        for pid, name in names.items()
        if not name.startswith("passfs")
        and Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"\0serve\0")
    )
    return pid


def resources() -> Mapping[str, Mapping[str, int]]:
    """Return the numbers of processes by name, and of descriptors of the service and its manager.

    The manager is in this process.
    """
    names = (Path(f"/proc/{pid}/comm") for pid in descendants(os.getpid()) if is_alive(pid))
    kinds = {
        name: Counter({re.sub(r"\d+", "N", kind): len(all_) for kind, all_ in targets(pid).items()})
        for name, pid in (("service", service()), ("manager", os.getpid()))
    }
    stored = {kind: number for kind, number in kinds["manager"].items() if "/" in kind}
    return {
        "processes": Counter(name.read_text() for name in names),
        "service": kinds["service"],
        "stored": stored,
    }


@pytest.mark.timeout(CRASHES * ROUND_S + SETUP_S)
@pytest.mark.parametrize("driver", ["host"], indirect=True)
def test_no_container_notices_crashes_of_the_service(driver: Driver) -> None:
    """Volumes are mounted before a crash and unmounted after it; workers die before or after it.

    Containers of another volume start all the time. The engine refuses a container if the plugin
    died during its request.
    """
    rng = random.Random(SEED)  # noqa: S311 - reproducible, not secret
    with driver.volume(standby="on") as volume, driver.container(volume) as container:
        busy = Busy(container)
        driver.crash(service())
        busy.go_on()
        before, deaths = resources(), 0
        with driver.volume(standby="on") as another:
            starts = Starts(driver, another, lambda text: INTERRUPTED.search(text) is not None)
            with starts.running():
                for number in range(CRASHES):
                    kills = number % 3 - 1
                    with driver.volume(standby="on") as other:
                        _crash_while_in_use(driver, volume, other, kills, rng.random())
                    assert driver.file_systems(other) == set()
                    busy.go_on()
                    starts.go_on()
                    deaths += abs(kills)
                    status = driver.status(volume)
                    assert (status["deaths"], status["references"]) == (deaths, 1)
            assert starts.wrong == []
        assert driver.file_systems(another) == set()
        driver.crash(service())
        wait_until(lambda: resources() == before, SETTLED_S)
    print(f"{starts.done} containers, {starts.refused}")  # noqa: T201 - shown by -rP


def _crash_while_in_use(
    driver: Driver, volume: Volume, other: Volume, kills: int, moment: float
) -> None:
    """Kill the service while a container uses *other*.

    The worker of *volume* is killed right before (-1), after (1), or not at all (0).
    """
    first = driver.status(volume)["worker_pid"]
    with driver.container(other) as user, Members(first) as processes:
        execute(user, "echo old > /data/file")
        worker = processes.whole().worker_pid
        time.sleep(moment * LONGEST_PAUSE_S)
        if kills < 0:
            os.kill(worker, signal.SIGKILL)
        driver.crash(service())
        if kills > 0:
            os.kill(worker, signal.SIGKILL)
        assert execute(user, "cat /data/file; echo new > /data/file") == "old\n"
        assert driver.run(other, "cat /data/file") == "new\n"
        processes.whole()


@pytest.mark.parametrize("driver", ["host"], indirect=True)
def test_a_crash_during_a_mount_is_an_error_of_that_container_alone(driver: Driver) -> None:
    with driver.volume(standby="on") as volume, driver.container(volume) as container:
        busy = Busy(container)
        fork_server = parent(os.getpgid(driver.status(volume)["worker_pid"]))
        with driver.volume(standby="on") as other:
            starts = Starts(driver, other, lambda text: INTERRUPTED.search(text) is not None)
            os.kill(fork_server, signal.SIGSTOP)  # so that the Mount is not done at the crash
            with starts.running():
                wait_until(lambda: "waiting" in driver.status(other))
                driver.crash(service())
                os.kill(fork_server, signal.SIGCONT)
                starts.go_on()
            assert starts.wrong == []
            assert len(starts.refused) == 1
            status = driver.status(other)
            assert (status["mounted"], status["references"]) == (False, 0)
        busy.go_on()


@pytest.mark.timeout(ROUNDS * ROUND_S + SETUP_S)
def test_containers_start_and_end_while_workers_die(driver: Driver) -> None:
    """A container holds the mount, so that one control page counts all deaths."""
    with (
        driver.volume(standby="on") as volume,
        driver.container(volume),
        Members(driver.status(volume)["worker_pid"]) as processes,
    ):
        place = driver.mountpoint(volume)
        killing = Killing(processes, SEED, lambda: os.statvfs(place))
        starts = Starts(driver, volume)
        with starts.running():
            for _ in range(ROUNDS):
                began = time.time()
                before = killing.deaths
                killing.do(killing.draw())
                status = driver.status(volume)
                assert status["deaths"] == killing.deaths
                if killing.deaths > before:
                    at, how = status["last_death"].split(": ")
                    died = datetime.strptime(at, "%Y-%m-%d %H:%M:%S %Z").replace(tzinfo=UTC)
                    assert int(began) <= died.timestamp() <= time.time()
                    assert how in {"was killed by SIGKILL", "ended with an unknown status"}
            starts.go_on()
        assert starts.wrong == []
        assert (driver.status(volume)["references"], starts.refused) == (1, [])
    print(f"{dict(killing.done)}, {starts.done} containers")  # noqa: T201 - shown by -rP


@pytest.mark.timeout(ROUNDS * ROUND_S + SETUP_S)
def test_a_worker_dies_while_its_volume_is_mounted_or_unmounted(driver: Driver) -> None:
    """Each container mounts the volume, and its end unmounts it."""
    rng = random.Random(SEED)  # noqa: S311 - reproducible, not secret
    killed = 0
    with driver.volume(standby="on") as volume:
        starts = Starts(driver, volume)
        with starts.running():
            for _ in range(ROUNDS):
                starts.go_on()
                wait_until(lambda: starts.wrong != [] or driver.status(volume)["worker_pid"] > 0)
                time.sleep(rng.random() * LONGEST_PAUSE_S)
                killed += _kill(driver.status(volume)["worker_pid"])
            starts.go_on()
        assert (starts.wrong, starts.refused) == ([], [])
        assert driver.file_systems(volume) == set()
    print(f"{killed} killed, {starts.done} containers")  # noqa: T201 - shown by -rP


def _kill(worker: int) -> bool:
    """Kill a worker of this moment; return False if there is none."""
    try:
        return Path(f"/proc/{worker}/comm").read_bytes().startswith(b"passfs:") and kill(worker)
    except (FileNotFoundError, ProcessLookupError):
        return False
