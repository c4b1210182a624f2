"""Volumes when workers die, and when the plugin stops, starts and is replaced."""

import os
import signal
import time
from pathlib import Path

import pytest
from docker.models.containers import Container
from docker.models.volumes import Volume

from tests.support.tools.driver import TRUST, Driver, execute, passfs


def test_a_dead_worker_is_replaced_by_the_next_mount(driver: Driver) -> None:
    """A running container gets errors and no hang; the next container gets a new mount."""
    with driver.volume() as volume:
        with driver.container(volume) as container:
            execute(container, "echo kept > /data/file")
            _kill_worker(driver, volume)
            code, output = container.exec_run(["timeout", "20", "cat", "/data/file"])
            assert code == 1
            assert b"not connected" in output

            assert driver.run(volume, "cat /data/file") == "kept\n"
            assert len(driver.file_systems(volume)) == 1
        assert driver.run(volume, "cat /data/file") == "kept\n"
        assert driver.file_systems(volume) == set()


def test_volumes_outlive_a_restart_of_the_plugin(driver: Driver) -> None:
    """After disable and enable, or stop and start, volumes keep their options and data."""
    with driver.volume(cache="metadata") as volume:
        driver.run(volume, "echo kept > /data/file")
        driver.restart()

        assert driver.status(volume)["options"]["cache"] == "metadata"
        assert driver.run(volume, "cat /data/file") == "kept\n"


@pytest.mark.parametrize("driver", ["managed"], indirect=True)
def test_installing_again_upgrades_in_place(driver: Driver) -> None:
    with driver.volume(cache="never") as volume:
        driver.run(volume, "echo kept > /data/file")
        passfs("install", "--name", driver.name.removesuffix(":latest"), *TRUST)

        assert driver.status(volume)["options"]["cache"] == "never"
        assert driver.run(volume, "cat /data/file") == "kept\n"


@pytest.mark.parametrize("driver", ["host"], indirect=True)
def test_running_containers_do_not_notice_a_restart_of_the_service(driver: Driver) -> None:
    """A container that writes and reads all the time gets no error and keeps its worker."""
    with driver.volume() as volume:
        with driver.container(volume) as container:
            container.exec_run(["sh", "-c", BUSY], detach=True)
            before = driver.status(volume), driver.file_systems(volume)
            for _ in "123":
                driver.restart()
                _wait_for_rounds(container)
                assert (driver.status(volume), driver.file_systems(volume)) == before
            assert driver.run(volume, "cat /data/more; echo new > /data/more") == ""
            assert execute(container, "cat /data/more; cat /tmp/failures") == "new\n"
        assert driver.file_systems(volume) == set()


# The container writes and reads a file in rounds, and notes the rounds that fail.
BUSY = """
touch /tmp/failures /data/more
round=0
while sleep 0.01; do
    round=$((round + 1))
    { echo $round > /data/file && [ "$(cat /data/file)" = $round ]; } 2>> /tmp/failures ||
        echo "round $round" >> /tmp/failures
    echo $round > /tmp/round.new && mv /tmp/round.new /tmp/round
done
"""
BUSY_S = 20.0


def _wait_for_rounds(container: Container) -> None:
    """Wait until BUSY has run 5 more rounds."""
    rounds = "cat /tmp/round 2>/dev/null || echo 0"
    before, limit = int(execute(container, rounds)), time.monotonic() + BUSY_S
    while int(execute(container, rounds)) < before + 5:
        assert time.monotonic() < limit, "the container hangs"


def _kill_worker(driver: Driver, volume: Volume) -> None:
    """Kill the worker by its PID in Status: the host's PID, also for the managed plugin."""
    pid = driver.status(volume)["worker_pid"]
    assert Path(f"/proc/{pid}/comm").read_bytes().startswith(b"passfs:")
    os.kill(pid, signal.SIGKILL)
