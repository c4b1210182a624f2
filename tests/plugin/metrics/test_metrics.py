"""The metrics of the service, scraped from outside while its volumes are used."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import pytest
import trio

from plugin.admin.address import Address, TcpAddress
from tests.support.fakes.dockerd import plugin
from tests.support.fakes.service_manager import ServiceManager
from tests.support.fakes.worker import command
from tests.support.tools.processes import wait_until
from tests.support.tools.scraping import Scrape, free_port, page, scrape
from tests.support.tools.service import Service

ASKS = 20
LIMIT_S = 20.0
MIB = 1 << 20
PROGRAM = "from plugin.start import main; main()"
TAKEOVER = "passfs_last_takeover_seconds"
MEMORY = "passfs_worker_resident_memory_bytes"
SERVE = command("serve")


@contextlib.contextmanager
def serving(
    directory: Path, address: Address, manager: ServiceManager | None = None
) -> Iterator[Service]:
    """Run the plugin with metrics at *address*."""
    service = Service(directory, manager, environment={"PASSFS_METRICS": str(address)})
    service.start()
    wait_until(lambda: answers(address), LIMIT_S)
    try:
        yield service
    finally:
        if service.process is not None:
            service.end(signal.SIGTERM)


def answers(address: Address) -> bool:
    try:
        return page(address, "/health").status == 200
    except OSError:
        return False


@contextlib.contextmanager
def mounted(service: Service, name: str = "vol", **options: str) -> Iterator[Path]:
    """Create and mount a volume; yield a file in it."""
    service.call("VolumeDriver.Create", Name=name, Opts=options)
    path = service.call("VolumeDriver.Mount", Name=name, ID="i")["Mountpoint"]
    file = Path(path, "file")
    file.touch()
    try:
        yield file
    finally:
        service.call("VolumeDriver.Unmount", Name=name, ID="i")


def ask(file: Path) -> None:
    """Make ASKS requests GETXATTR, which all fail: the kernel keeps no attributes."""
    for _ in range(ASKS):
        with pytest.raises(OSError, match="No data") as error:
            os.getxattr(file, "user.absent")
        assert error.value.errno == errno.ENODATA


def requests(found: Scrape, operation: str, volume: str = "vol") -> float:
    labels = {"volume": volume, "operation": operation}
    return found.value("passfs_request_duration_seconds_count", **labels) or 0.0


def failures(found: Scrape) -> float:
    return found.value("passfs_errors_total", volume="vol", errno="ENODATA") or 0.0


def health(found: Scrape, volume: str = "vol") -> list[str]:
    return [
        dict(labels)["health"]
        for (name, labels), value in found.samples.items()
        if name == "passfs_volume_health" and value and ("volume", volume) in labels
    ]


ADDRESSES: dict[str, Callable[[Path], Address]] = {
    "unix": lambda directory: directory / "metrics.sock",
    "ipv4": lambda _: TcpAddress("127.0.0.1", free_port()),
    "ipv6": lambda _: TcpAddress("::1", free_port("::1")),
}


@pytest.mark.full
@pytest.mark.parametrize("kind", ADDRESSES)
def test_requests_and_errors_are_counted_at_each_kind_of_address(tmp_path: Path, kind: str) -> None:
    address = ADDRESSES[kind](tmp_path)
    with serving(tmp_path, address) as service, mounted(service) as file:
        before = scrape(address)
        ask(file)
        wait_until(lambda: scrape(address).value("passfs_guards", volume="vol") == 2)
        after = scrape(address)
        assert requests(after, "GETXATTR") - requests(before, "GETXATTR") == ASKS
        assert failures(after) - failures(before) == ASKS
        assert health(after) == ["ok"]
        assert after.value("passfs_volumes", state="mounted") == 1
        assert after.value("passfs_references", volume="vol") == 1
        assert after.value("passfs_worker_deaths_total", volume="vol") == 0
        for own in after.value(MEMORY, volume="vol"), after.value("process_resident_memory_bytes"):
            assert own is not None
            assert own > MIB
        versions = after.labelled("passfs_build_info", "version")
        assert versions == {metadata.version("passfs"): 1.0}


@pytest.mark.full
def test_no_counter_of_a_mount_goes_backwards_and_a_remount_begins_anew(tmp_path: Path) -> None:
    address = tmp_path / "metrics.sock"
    with serving(tmp_path, address) as service:
        with mounted(service) as file:
            former = scrape(address)
            for _ in range(3):
                ask(file)
                found = scrape(address)
                fallen = [
                    key
                    for key, value in former.samples.items()
                    if key[0].endswith(("_total", "_count", "_sum", "_bucket"))
                    and found.samples.get(key, -1) < value
                ]
                assert fallen == []
                former = found
            assert requests(former, "GETXATTR") >= 3 * ASKS
        assert requests(scrape(address), "GETXATTR") == 0
        with mounted(service):
            assert 0 <= requests(scrape(address), "GETXATTR") < ASKS


@pytest.mark.full
def test_opens_data_and_open_files_are_those_of_the_callers(tmp_path: Path) -> None:
    address = tmp_path / "metrics.sock"

    def value(name: str) -> float:
        return scrape(address).value(f"passfs_{name}", volume="vol") or 0.0

    with serving(tmp_path, address) as service, mounted(service, passthrough="off") as file:
        wait_until(lambda: value("open_files") == 0)  # the kernel releases *file* after its close
        opens, inodes = map(value, ("opens_total", "inodes"))
        with file.open("wb") as written:
            written.write(bytes(MIB))
            written.flush()
            assert value("open_files") == 1
        assert value("opens_total") == opens + 1
        assert value("written_bytes_total") == MIB
        assert value("passthrough_opens_total") == 0
        file.with_name("another").touch()
        assert value("inodes") == inodes + 1
        with file.open("rb", buffering=0) as read:
            os.posix_fadvise(read.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert len(read.read()) == MIB
        assert value("read_bytes_total") >= MIB


@pytest.mark.full
def test_a_death_of_a_worker_is_counted_and_the_counters_go_on(tmp_path: Path) -> None:
    address = tmp_path / "metrics.sock"
    with serving(tmp_path, address) as service, mounted(service) as file:
        ask(file)
        before = scrape(address)
        status = service.call("VolumeDriver.Get", Name="vol")["Volume"]["Status"]
        os.kill(status["worker_pid"], signal.SIGKILL)
        ask(file)
        wait_until(lambda: (scrape(address).value(TAKEOVER, volume="vol") or 0) > 0, LIMIT_S)
        after = scrape(address)
        assert after.value("passfs_worker_deaths_total", volume="vol") == 1
        assert 0 < (after.value(TAKEOVER, volume="vol") or 0) < LIMIT_S
        assert requests(after, "GETXATTR") >= requests(before, "GETXATTR") + ASKS


@pytest.mark.full
def test_counters_go_on_after_a_restart_of_the_service(
    tmp_path: Path, manager: ServiceManager
) -> None:
    """The socket of a plugin that was killed is replaced."""
    address = tmp_path / "metrics.sock"
    with serving(tmp_path, address, manager) as service, mounted(service) as file:
        ask(file)
        before = scrape(address)
        service.end(signal.SIGKILL)
        assert address.is_socket()
        service.start()
        wait_until(lambda: answers(address), LIMIT_S)
        assert requests(scrape(address), "GETXATTR") >= requests(before, "GETXATTR") >= ASKS


async def test_the_plugin_is_healthy_with_volumes_in_any_state(tmp_path: Path) -> None:
    address = tmp_path / "metrics.sock"
    async with plugin(tmp_path, SERVE, PASSFS_METRICS=str(address)) as dockerd:
        await dockerd.do("Create", Name="vol")
        found = await trio.to_thread.run_sync(page, address, "/health")
        assert (found.status, found.content_type) == (200, "application/json")
        health = json.loads(found.text)
        assert health.pop("version") == metadata.version("passfs")
        assert health.pop("program")
        assert health == {"status": "ok", "volumes": 1, "mounted": 0, "lost": 0}


@pytest.mark.full
@pytest.mark.parametrize(
    ("arguments", "address", "accepted"),
    [
        ([], "127.0.0.1", "the absolute path of a Unix socket"),
        (["--managed"], "127.0.0.1:9464", "a managed plugin has no network"),
    ],
)
def test_the_program_refuses_an_address_at_its_start(
    tmp_path: Path, arguments: Sequence[str], address: str, accepted: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "serve", *arguments],
        env=os.environ | {"PASSFS_METRICS": address, "PASSFS_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"passfs serve: PASSFS_METRICS='{address}' is not accepted; ")
    assert accepted in done.stderr
    assert not (tmp_path / "data").exists()
