"""engine_restart.py: a managed plugin whose engine is new ends; nobody else does, for nothing."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from plugin.api.engine_restart import GREETING_S, Greetings
from tests.support.fakes.dockerd import settings
from tests.support.tools.service import START_S, Service, started


@pytest.fixture
def propagated(tmp_path: Path) -> Iterator[Path]:
    """A mount directory that is a mount, as the engine makes it for a managed plugin."""
    directory = settings(tmp_path).mount_dir
    directory.mkdir()
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The signals that the plugin has sent itself."""
    sent: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", sent.append)
    return sent


def idle() -> bool:
    return True


def greet(service: Service) -> None:
    """Do as the engine does when it has started, or found, a plugin."""
    with closing(service.connect()):
        pass


@pytest.mark.usefixtures("propagated")
def test_it_ends_when_its_engine_is_new(tmp_path: Path) -> None:
    with started(tmp_path) as service:
        assert service.process is not None
        greet(service)
        service.call("VolumeDriver.Create", Name="vol")
        assert service.process.poll() is None
        greet(service)
        assert service.process.wait(START_S) == 0
        service.process = None
        assert not settings(tmp_path).socket.exists()
        service.start()
        assert [v["Name"] for v in service.call("VolumeDriver.List")["Volumes"]] == ["vol"]


@pytest.mark.usefixtures("propagated")
def test_it_stays_while_a_volume_is_mounted(tmp_path: Path) -> None:
    """A container uses it: the engine has left its mounts as they were."""
    with started(tmp_path) as service:
        service.call("VolumeDriver.Create", Name="vol")
        service.call("VolumeDriver.Mount", Name="vol", ID="i")
        for _ in range(3):
            greet(service)
        status, _ = service.end(signal.SIGTERM)
        assert status == 0
        assert "started anew" not in service.log.read_text()


@pytest.mark.parametrize(
    ("greetings", "seconds", "ends"),
    [(1, 0.0, False), (2, 0.0, True), (2, GREETING_S - 1, True), (9, GREETING_S + 1, False)],
)
def test_which_greetings_count(
    propagated: Path, ended: list[int], greetings: int, seconds: float, ends: bool
) -> None:
    """A client that keeps a connection for later, and never needs it, is no new engine."""
    heard = Greetings(propagated, idle)
    for _ in range(greetings):
        heard.hear(seconds)

    assert ended == [signal.SIGTERM] * ends


@pytest.mark.parametrize("still_idle", [idle, lambda: False])
def test_a_service_of_the_host_never_ends(
    tmp_path: Path, ended: list[int], still_idle: Callable[[], bool]
) -> None:
    """Its mount directory is the host's own, and no engine would start it again."""
    heard = Greetings(tmp_path, still_idle)
    for _ in range(3):
        heard.hear(0.0)

    assert ended == []
