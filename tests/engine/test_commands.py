"""The commands about volumes, against the managed plugin and against the service."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.tools.driver import Driver, execute, passfs


def asked(driver: Driver, *arguments: str) -> Any:
    """Return the JSON of a command."""
    return json.loads(passfs(*arguments, "--json", "--data-dir", str(driver.data_dir)))


def test_ls_has_the_volumes_of_the_driver(driver: Driver) -> None:
    with driver.volume(cache="never") as volume:
        (row,) = [row for row in asked(driver, "ls") if row["name"] == volume.name]
        assert (row["cache"], row["users"], row["health"]) == ("never", 0, "idle")
        assert row["source"] == str(driver.own_directory(volume))


def test_status_has_processes_of_the_host_and_the_container(driver: Driver) -> None:
    with driver.volume() as volume, driver.container(volume) as container:
        found = asked(driver, "status", volume.name)
        assert (found["health"], len(found["references"])) == ("ok", 1)
        (user,) = found["users"]
        assert container.id is not None
        assert (user["container"], user["target"]) == (container.id[:12], "/data")
        for each in found["processes"]:
            group = Path(f"/proc/{each['pid']}/status").read_text()
            assert f"\nNSpid:\t{each['pid']}" in group
        assert found["processes"][0]["pid"] == found["status"]["worker_pid"]
    assert volume.name not in [row["name"] for row in asked(driver, "ls")]


def test_status_without_a_volume_has_the_process_of_the_plugin(driver: Driver) -> None:
    pid = asked(driver, "status")["process"]["pid"]
    assert b"python" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_check_agrees_while_a_container_runs(driver: Driver) -> None:
    with driver.volume() as volume, driver.container(volume):
        assert asked(driver, "check", volume.name) == []


def test_rm_refuses_a_volume_that_a_container_uses(driver: Driver) -> None:
    with driver.volume() as volume, driver.container(volume) as container:
        with pytest.raises(AssertionError, match=f"volume '{volume.name}' is in use: "):
            passfs("rm", "--force", volume.name, "--data-dir", str(driver.data_dir))
        execute(container, "echo still > /data/here")


def test_the_engine_forgets_a_volume_that_rm_has_removed(driver: Driver) -> None:
    with driver.volume() as volume:
        removed = asked(driver, "rm", "--force", volume.name)
        assert removed == {"name": volume.name, "references": 0}
        listed = driver.client.volumes.list(filters={"driver": driver.name})
        assert volume.name not in [each.name for each in listed]
