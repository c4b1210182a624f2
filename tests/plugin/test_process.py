"""`plugin.app.run`: the plugin as a process, from its start to its end by a signal or a crash."""

import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from plugin import app
from plugin.api import server
from plugin.errors import CannotStart
from plugin.mounting import detaching, spawner, worker
from plugin.volumes.registry import Registry
from tests.support.fakes.dockerd import settings
from tests.support.fakes.hung import HungSource, is_opening
from tests.support.tools.processes import children, lives, wait_until
from tests.support.tools.records import record
from tests.support.tools.service import Service, request, started

pytestmark = pytest.mark.full


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with started(tmp_path) as service:
        yield service


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_plugin_cleanly(service: Service, number: signal.Signals) -> None:
    """Within 8 s, because the engine kills a plugin after 10 s, and despite open connections."""
    for name in ("aa", "bb"):
        service.call("VolumeDriver.Create", Name=name)
        service.call("VolumeDriver.Mount", Name=name, ID="i")
    target = service.directory / "mounts" / "aa"
    (target / "file").write_text("kept")
    fd = os.open(target / "file", os.O_RDWR)
    with closing(service.connect()):
        status, seconds = service.end(number)
    with pytest.raises(OSError, match="not connected"):
        os.close(fd)
    assert status == 0, service.log.read_text()
    assert seconds < 8
    assert service.mounted() == []
    assert list((service.directory / "mounts").iterdir()) == []
    assert not settings(service.directory).socket.exists()
    assert "WARNING" not in service.log.read_text()


def test_the_soft_limit_of_descriptors_is_the_hard_limit(service: Service) -> None:
    """Each mounted volume takes half a dozen."""
    assert service.process is not None
    soft, hard = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
    assert soft == hard


def test_a_hanging_worker_does_not_delay_the_end(service: Service) -> None:
    service.call("VolumeDriver.Create", Name="vol")
    service.call("VolumeDriver.Mount", Name="vol", ID="i")
    worker = service.call("VolumeDriver.Get", Name="vol")["Volume"]["Status"]["worker_pid"]
    os.kill(worker, signal.SIGSTOP)
    status, seconds = service.end(signal.SIGTERM)
    assert status == 0, service.log.read_text()
    assert seconds < 8
    assert service.mounted() == []
    wait_until(lambda: not lives(worker))


def test_a_hanging_source_worker_and_fork_server_do_not_delay_the_end(
    service: Service,
) -> None:
    source = service.directory / "source"
    (source / "far").mkdir(parents=True)
    service.call("VolumeDriver.Create", Name="far", Opts={"source": str(source / "far")})
    service.call("VolumeDriver.Create", Name="near")
    service.call("VolumeDriver.Mount", Name="near", ID="i")
    worker = service.call("VolumeDriver.Get", Name="near")["Volume"]["Status"]["worker_pid"]
    assert service.process is not None
    (fork_server,) = children(service.process.pid)
    with HungSource(source), closing(service.connect()) as client:
        client.sendall(request("VolumeDriver.Mount", Name="far", ID="i"))
        while not is_opening(service.process.pid):
            time.sleep(0.01)
        for pid in (worker, fork_server):
            os.kill(pid, signal.SIGSTOP)
        status, seconds = service.end(signal.SIGTERM)
    assert status == 0, service.log.read_text()
    assert seconds < 8
    assert service.mounted() == []
    assert list((service.directory / "mounts").iterdir()) == []


def test_all_deadlines_of_the_end_add_up_to_less_than_10_s() -> None:
    """The engine kills a plugin after 10 s."""
    requests = server.DRAIN_S + worker.KILL_GRACE_S + detaching.UNDO_DEADLINE_S
    ends = worker.END_GRACE_S + worker.KILL_GRACE_S + spawner.END_GRACE_S
    assert requests + detaching.SHUTDOWN_DEADLINE_S + ends < 8
    longest = max(requests + detaching.SHUTDOWN_DEADLINE_S, detaching.SHUTDOWN_LIMIT_S)
    assert longest + detaching.AFTER_KILL_S + ends < 10


def test_a_crash_costs_the_mounts_and_nothing_else(service: Service) -> None:
    """After each crash the workers end, and the next start clears the mounts away.

    Status says that users have lost their mount, until they have unmounted.
    """
    service.call("VolumeDriver.Create", Name="vol", Opts={"cache": "never"})
    before = service.call("VolumeDriver.Get", Name="vol")
    for _ in range(3):
        service.call("VolumeDriver.Mount", Name="vol", ID="i")
        (service.directory / "mounts" / "vol" / "file").write_text("kept")
        assert service.mounted() == ["vol"]
        assert service.end(signal.SIGKILL)[0] == -signal.SIGKILL
        service.start()
        assert service.mounted() == []
        status = service.call("VolumeDriver.Get", Name="vol")["Volume"]["Status"]
        assert (status["mounted"], status["references"]) == (False, 1)
        assert "the plugin ended while the volume was mounted" in status["error"]
    service.call("VolumeDriver.Unmount", Name="vol", ID="i")
    assert service.call("VolumeDriver.Get", Name="vol") == before
    assert (service.directory / "data" / "volumes" / "vol" / "file").read_text() == "kept"


def test_a_second_plugin_leaves_the_first_alone(service: Service) -> None:
    service.call("VolumeDriver.Create", Name="vol")
    service.call("VolumeDriver.Mount", Name="vol", ID="i")
    with pytest.raises(CannotStart, match="another passfs uses the data directory"):
        trio.run(app._run, settings(service.directory))
    assert service.mounted() == ["vol"]
    assert service.call("VolumeDriver.Get", Name="vol")["Volume"]["Status"]["mounted"]


@pytest.mark.alone
def test_the_plugin_answers_within_3_s_with_500_volumes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with Registry.open(tmp_path / "data") as registry:
        # Otherwise each of the 500 commits would wait for the disk.
        registry._connection.execute("PRAGMA synchronous = OFF")
        for number in range(500):
            registry.add(record(f"v{number}", source="/srv"))
    service = Service(tmp_path)
    try:
        assert service.starts_within(3)
        assert len(service.call("VolumeDriver.List")["Volumes"]) == 500
    finally:
        service.end(signal.SIGTERM)


def test_a_file_that_is_no_registry_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "passfs.db").write_text("mine")
    with pytest.raises(CannotStart, match="it is no SQLite database"):
        trio.run(app._run, settings(tmp_path))
    assert not (tmp_path / "p.sock").exists()
    assert (tmp_path / "data" / "passfs.db").read_text() == "mine"


FRAGMENTS = st.sampled_from(
    [
        b"POST /VolumeDriver.Mount HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"Host: x\r\n",
        b"Content-Length: 2\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Connection: close\r\n",
        b"\r\n",
        b"{}",
        b"2\r\n{}\r\n0\r\n\r\n",
    ]
)


@hypothesis_settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(FRAGMENTS | st.binary(max_size=20), max_size=12))
def test_no_input_ends_the_plugin(service: Service, pieces: list[bytes]) -> None:
    with closing(service.connect()) as client:
        try:
            for piece in pieces:
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass  # the plugin has closed the connection
    assert service.call("VolumeDriver.List") == {"Volumes": []}
