"""What the end of the engine does to volumes.

In each installation, by each way to end, with live-restore, which leaves containers running, and
without, and with a container and without.
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

from tests.support.tools.driver import OWN_HOST_NAME, Driver, on_host
from tests.support.tools.own_engine import OwnEngine

# A line a turn; the first that cannot be written ends it.
WRITER = "while sleep 0.05; do echo beat >> /data/beats || exit 1; done"
BEATS_S = 20


class Ending(NamedTuple):
    """One way for the engine to end and to come again."""

    live_restore: bool
    running: bool
    """Whether a container has the volume mounted meanwhile."""
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
# What is left out goes the same way as what is here: without live-restore an engine ends a managed
# plugin and starts it anew, whatever uses it, and has nothing to do with a service's mounts but by
# its containers.
ENDINGS = [
    ("managed", Ending(live_restore=False, running=False, signal=STOP)),
    ("managed", Ending(live_restore=False, running=True, signal=STOP)),
    ("managed", Ending(live_restore=False, running=True, signal=KILL)),
    ("managed", Ending(live_restore=True, running=False, signal=STOP)),
    ("managed", Ending(live_restore=True, running=True, signal=STOP)),
    ("managed", Ending(live_restore=True, running=True, signal=KILL)),
    ("host", Ending(live_restore=False, running=True, signal=STOP)),
    # The engine forgets this user of the volume, and mounts again with the same id.
    ("host", Ending(live_restore=False, running=True, signal=KILL)),
    ("host", Ending(live_restore=True, running=True, signal=KILL)),
]


@pytest.fixture(scope="module")
def driver(request: pytest.FixtureRequest, engine: OwnEngine) -> Iterator[Driver]:
    """The driver in an engine that may be ended."""
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
            _writes_on(source)
        engine.end(ending.signal)
        if container is not None and ending.live_restore:
            _writes_on(source)
        engine.start(live_restore=ending.live_restore)

        assert driver.status(volume)["options"]["cache"] == "metadata"
        if container is not None:
            _is_as_it_was(container, ending, source)
        # A new container, whatever became of the old one: the volume, and no directory beneath it.
        seen = driver.run(volume, "grep /data /proc/mounts; cat /data/file; echo new > /data/new")
        assert "fuse.passfs" in seen
        assert seen.endswith("kept\n")
        assert (source / "new").read_text() == "new\n"


def _is_as_it_was(container: Container, ending: Ending, source: Path) -> None:
    """With live-restore it has never stopped; else it starts again on the same volume."""
    container.reload()
    if ending.live_restore:
        assert container.status == "running"
        _writes_on(source)
    else:
        assert container.status == "exited"
        container.start()
        code, output = container.exec_run(["cat", "/data/file"])
        assert (code, output) == (0, b"kept\n")


def _writes_on(source: Path) -> None:
    """Wait until the container has written three more lines, seen from the host."""
    beats = source / "beats"
    before = beats.stat().st_size if beats.exists() else 0
    deadline = time.monotonic() + BEATS_S
    while not beats.exists() or beats.stat().st_size < before + 3 * len("beat\n"):
        assert time.monotonic() < deadline, "the container writes no more"
        time.sleep(0.02)
