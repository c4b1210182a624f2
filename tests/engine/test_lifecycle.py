"""What happens to volumes when workers die, and when the plugin stops, starts and is replaced."""

import os
import signal
import time
from pathlib import Path

import pytest
from docker.models.containers import Container
from docker.models.volumes import Volume

from tests.support.tools.driver import TRUST, Driver, execute, passfs


def test_a_dead_worker_is_replaced_by_the_next_mount(driver: Driver) -> None:
    """Who is inside gets errors and no hang; the next container finds a fresh mount."""
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
    """Disable and enable, or stop and start: volumes, options and data are there again."""
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
def test_running_containers_notice_nothing_of_a_restart_of_the_service(driver: Driver) -> None:
    """One writes and reads all the time, and meets with no error and no other worker."""
    with driver.volume() as volume:
        with driver.container(volume) as container:
            container.exec_run(["sh", "-c", BUSY], detach=True)
            before = driver.status(volume), driver.file_systems(volume)
            for _ in "123":
                driver.restart()
                _goes_on(container)
                assert (driver.status(volume), driver.file_systems(volume)) == before
            assert driver.run(volume, "cat /data/more; echo new > /data/more") == ""
            assert execute(container, "cat /data/more; cat /tmp/failures") == "new\n"
        assert driver.file_systems(volume) == set()


# In a container: counts the turns in which it read what it had written, and notes the others.
BUSY = """
touch /tmp/failures /data/more
turn=0
while sleep 0.01; do
    turn=$((turn + 1))
    { echo $turn > /data/file && [ "$(cat /data/file)" = $turn ]; } 2>> /tmp/failures ||
        echo "turn $turn" >> /tmp/failures
    echo $turn > /tmp/turn.new && mv /tmp/turn.new /tmp/turn
done
"""
BUSY_S = 20.0


def _goes_on(container: Container) -> None:
    """Wait for some turns of what is busy."""
    turns = "cat /tmp/turn 2>/dev/null || echo 0"
    before, limit = int(execute(container, turns)), time.monotonic() + BUSY_S
    while int(execute(container, turns)) < before + 5:
        assert time.monotonic() < limit, "it hangs"


def _kill_worker(driver: Driver, volume: Volume) -> None:
    """Kill the worker by its id in Status, which is the host's also for the managed plugin."""
    pid = driver.status(volume)["worker_pid"]
    assert Path(f"/proc/{pid}/comm").read_bytes().startswith(b"passfs:")
    os.kill(pid, signal.SIGKILL)
