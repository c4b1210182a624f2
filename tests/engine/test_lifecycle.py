"""Volumes when workers die, and when the plugin stops, starts and is replaced."""

from pathlib import Path

import pytest
from docker.models.volumes import Volume

from tests.support.tools.busy import Busy
from tests.support.tools.driver import CONNECTION_ENDED, TRUST, Driver, execute, outcome, passfs
from tests.support.tools.processes import kill_all


def test_a_dead_worker_is_replaced_by_the_next_mount(driver: Driver) -> None:
    """A running container gets errors and no hang; the next container gets a new mount."""
    with driver.volume(standby="off") as volume:
        with driver.container(volume) as container:
            execute(container, "echo kept > /data/file")
            _kill_worker(driver, volume)
            code, text = outcome(container, "timeout 20 cat /data/file")
            assert code == 1, text
            assert any(error in text for error in CONNECTION_ENDED), text

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
            busy = Busy(container)
            before = driver.status(volume), driver.file_systems(volume)
            for _ in "123":
                driver.restart()
                busy.go_on()
                assert (driver.status(volume), driver.file_systems(volume)) == before
            assert driver.run(volume, "cat /data/more; echo new > /data/more") == ""
            assert execute(container, "cat /data/more") == "new\n"
        assert driver.file_systems(volume) == set()


def _kill_worker(driver: Driver, volume: Volume) -> None:
    """Kill the worker and its guards by the PID in Status: the host's, also if managed."""
    pid = driver.status(volume)["worker_pid"]
    assert Path(f"/proc/{pid}/comm").read_bytes().startswith(b"passfs:")
    kill_all(pid)
