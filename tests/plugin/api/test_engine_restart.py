"""engine_restart.py: a managed plugin ends when its engine has been restarted."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from plugin.api.engine_restart import LONGEST_PROBE_S, RestartDetector
from tests.support.fakes.dockerd import settings
from tests.support.tools.service import START_S, Service, started


@pytest.fixture
def mounted_mount_dir(tmp_path: Path) -> Iterator[None]:
    """Mount a file system on the mount directory, as an administrator may do for a service."""
    directory = settings(tmp_path).mount_dir
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    yield
    subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the signals that the plugin has sent itself."""
    sent: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", sent.append)
    return sent


def idle() -> bool:
    return True


def probe(service: Service) -> None:
    """Connect without sending a byte, as an engine does that has started, or found, a plugin."""
    with closing(service.connect()):
        pass


def test_the_probe_of_a_second_engine_ends_the_plugin(tmp_path: Path) -> None:
    with started(tmp_path, managed=True) as service:
        assert service.process is not None
        probe(service)
        service.call("VolumeDriver.Create", Name="vol")
        assert service.process.poll() is None
        probe(service)
        assert service.process.wait(START_S) == 0
        service.process = None
        assert not settings(tmp_path).socket.exists()
        service.start()
        assert [v["Name"] for v in service.call("VolumeDriver.List")["Volumes"]] == ["vol"]


def test_probes_do_not_end_the_plugin_while_a_volume_is_mounted(tmp_path: Path) -> None:
    """A container uses the volume, so the engine has left the mounts as they were."""
    with started(tmp_path, managed=True) as service:
        service.call("VolumeDriver.Create", Name="vol")
        service.call("VolumeDriver.Mount", Name="vol", ID="i")
        for _ in range(3):
            probe(service)
        status, _ = service.end(signal.SIGTERM)
        assert status == 0
        assert "the engine has been restarted" not in service.log.read_text()


@pytest.mark.parametrize(
    ("probes", "seconds", "ends"),
    [
        *((1, 0.0, False), (2, 0.0, True)),
        *((2, LONGEST_PROBE_S - 1, True), (9, LONGEST_PROBE_S + 1, False)),
    ],
)
def test_the_second_short_connection_without_a_byte_ends_the_plugin(
    ended: list[int], probes: int, seconds: float, ends: bool
) -> None:
    """A long one is no probe: clients open connections in advance and may not need them."""
    detector = RestartDetector(idle)
    for _ in range(probes):
        detector.note_probe(seconds)

    assert ended == [signal.SIGTERM] * ends


def test_probes_do_not_end_the_plugin_during_a_mount(ended: list[int]) -> None:
    detector = RestartDetector(lambda: False)
    for _ in range(3):
        detector.note_probe(0.0)

    assert ended == []


@pytest.mark.usefixtures("mounted_mount_dir")
def test_probes_never_end_a_service_on_the_host(tmp_path: Path) -> None:
    """No engine would start it again."""
    with started(tmp_path) as service:
        for _ in range(3):
            probe(service)
        assert service.call("VolumeDriver.List")["Volumes"] == []
        assert "the engine has been restarted" not in service.log.read_text()
