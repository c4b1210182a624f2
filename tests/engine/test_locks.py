"""Locks between containers of one volume, and between a container and the host."""

import errno
import fcntl
from pathlib import Path

import pytest
from docker.models.containers import Container

from tests.support.tools.driver import Driver, execute
from tests.support.tools.files import refused

# Takes the kind of lock in KIND, says so with a second file, and holds the lock until its end.
HOLDER = """
import fcntl, os, signal
file = open("/data/file", "w")
getattr(fcntl, os.environ["KIND"])(file, fcntl.LOCK_EX)
open("/data/held", "w").close()
signal.pause()
"""
TRY = """
import fcntl, os
file = open("/data/file", "w")
try:
    getattr(fcntl, os.environ["KIND"])(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("held")
else:
    print("free")
"""
WAIT = """
import fcntl, os
file = open("/data/file", "w")
getattr(fcntl, os.environ["KIND"])(file, fcntl.LOCK_EX)
print("taken")
"""
KINDS = ("lockf", "flock")


def hold(container: Container, kind: str) -> None:
    """Have a process in *container* lock /data/file; return once the process holds the lock."""
    container.exec_run(["python3", "-c", HOLDER], detach=True, environment={"KIND": kind})
    execute(container, "timeout 60 sh -c 'until [ -e /data/held ]; do sleep 0.01; done'")


def python(container: Container, program: str, kind: str) -> str:
    environment = {"PROGRAM": program, "KIND": kind}
    return execute(container, 'python3 -c "$PROGRAM"', environment=environment).strip()


def lock_on_the_host(path: Path, kind: str) -> None:
    with path.open("w") as file:
        getattr(fcntl, kind)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_holds_between_two_containers_until_its_holder_ends(
    driver: Driver, kind: str
) -> None:
    """A volume without a source has local locks: one mount serves both containers."""
    with driver.volume() as volume, driver.container(volume) as second:
        assert driver.status(volume)["options"]["locks"] == "local"
        with driver.container(volume) as first:
            hold(first, kind)
            assert python(second, TRY, kind) == "held"
            assert len(driver.file_systems(volume)) == 1
        assert python(second, WAIT, kind) == "taken"


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_sees_no_lock_in_a_volume_without_a_source(driver: Driver, kind: str) -> None:
    with driver.volume() as volume, driver.container(volume) as container:
        hold(container, kind)
        lock_on_the_host(driver.own_directory(volume) / "file", kind)
        assert python(container, TRY, kind) == "held"


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_sees_locks_if_the_volume_asks_for_that(driver: Driver, kind: str) -> None:
    with driver.volume(locks="host") as volume, driver.container(volume) as container:
        assert driver.status(volume)["options"]["locks"] == "host"
        hold(container, kind)
        file = driver.own_directory(volume) / "file"
        refused(errno.EAGAIN, lambda: lock_on_the_host(file, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_two_volumes_and_the_host_share_the_locks_of_one_source(
    driver: Driver, source: Path, kind: str
) -> None:
    """A volume with a source has its locks on the host."""
    with driver.volume(source=str(source)) as one, driver.volume(source=str(source)) as other:
        assert driver.status(one)["options"]["locks"] == "host"
        with driver.container(other) as second:
            with driver.container(one) as first:
                hold(first, kind)
                assert python(second, TRY, kind) == "held"
                refused(errno.EAGAIN, lambda: lock_on_the_host(source / "file", kind))
            assert python(second, WAIT, kind) == "taken"
