"""Volumes when the engine ends and starts again.

The tests vary the installation, the signal, a running container, and live-restore, which leaves
containers running.
"""

import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from docker.models.containers import Container

from tests.support.tools.driver import OWN_HOST_NAME, Driver, execute, on_host
from tests.support.tools.own_engine import OwnEngine

# It writes a line each 50 ms, and ends at the first error.
WRITER = "while sleep 0.05; do echo beat >> /data/beats || exit 1; done"
BEATS_S = 20


class Ending(NamedTuple):
    """One way for the engine to end and to start again."""

    live_restore: bool
    running: bool
    """True if a container has the volume mounted at that time."""
    signal: signal.Signals

    def __str__(self) -> str:
        return "-".join(
            (
                "live_restore" if self.live_restore else "plain",
                "container" if self.running else "none",
                "kill" if self.signal == signal.SIGKILL else "stop",
            )
        )


STOP, KILL = signal.SIGTERM, signal.SIGKILL
# Other combinations run the same code as one of these. Without live-restore an engine restarts a
# managed plugin, even if it is in use. It reaches a service's mounts only through containers.
ENDINGS = [
    ("managed", Ending(live_restore=False, running=False, signal=STOP)),
    ("managed", Ending(live_restore=False, running=True, signal=STOP)),
    ("managed", Ending(live_restore=False, running=True, signal=KILL)),
    ("managed", Ending(live_restore=True, running=False, signal=STOP)),
    ("managed", Ending(live_restore=True, running=True, signal=STOP)),
    ("managed", Ending(live_restore=True, running=True, signal=KILL)),
    ("host", Ending(live_restore=False, running=True, signal=STOP)),
    # The engine forgets that the container uses the volume, and mounts again with the same id.
    ("host", Ending(live_restore=False, running=True, signal=KILL)),
    ("host", Ending(live_restore=True, running=True, signal=KILL)),
]


@pytest.fixture(scope="module")
def driver(request: pytest.FixtureRequest, engine: OwnEngine) -> Iterator[Driver]:
    """Provide the driver in an engine that tests may stop."""
    if request.param == "managed":
        yield request.getfixturevalue("own_managed")
        return
    directory = Path(tempfile.mkdtemp(prefix="passfs-own-", dir="/var/tmp"))
    with on_host(engine.client, directory, OWN_HOST_NAME) as driver:
        yield driver
    shutil.rmtree(directory)


@pytest.mark.parametrize(("driver", "ending"), ENDINGS, indirect=["driver"], ids=str)
def test_volumes_outlive_the_engine(
    engine: OwnEngine, driver: Driver, ending: Ending, source: Path
) -> None:
    engine.restart(live_restore=ending.live_restore)
    with (
        driver.volume(source=str(source), cache="metadata") as volume,
        contextlib.ExitStack() as at,
    ):
        driver.run(volume, "echo kept > /data/file")
        container = at.enter_context(driver.container(volume)) if ending.running else None
        if container is not None:
            container.exec_run(["sh", "-c", WRITER], detach=True)
            _wait_for_lines(source)
        engine.end(ending.signal)
        if container is not None and ending.live_restore:
            _wait_for_lines(source)
        engine.start(live_restore=ending.live_restore)

        assert driver.status(volume)["options"]["cache"] == "metadata"
        if container is not None:
            _check_container(container, ending, source)
        # A new container sees the volume, and not the directory beneath the mount point.
        seen = driver.run(volume, "grep /data /proc/mounts; cat /data/file; echo new > /data/new")
        assert "fuse.passfs" in seen
        assert seen.endswith("kept\n")
        assert (source / "new").read_text() == "new\n"


def _check_container(container: Container, ending: Ending, source: Path) -> None:
    """Check that *container* runs on with live-restore, and else starts again on its volume."""
    container.reload()
    if ending.live_restore:
        assert container.status == "running"
        _wait_for_lines(source)
    else:
        assert container.status == "exited"
        container.start()
        assert execute(container, "cat /data/file") == "kept\n"


def _wait_for_lines(source: Path) -> None:
    """Wait until the host sees three more lines of the container."""
    beats = source / "beats"
    before = beats.stat().st_size if beats.exists() else 0
    deadline = time.monotonic() + BEATS_S
    while not beats.exists() or beats.stat().st_size < before + 3 * len("beat\n"):
        assert time.monotonic() < deadline, "the container has stopped writing"
        time.sleep(0.02)
