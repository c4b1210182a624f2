"""The end of the plugin with hundreds of mounts: all are unmounted.

tests/plugin/mounting/test_adoption.py has the same with a service manager, which stores them.
"""
# ruff: noqa: ASYNC240 - calls on local directories; no other task is ready

import logging
import os
import select
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from passthrough.linux import mountinfo
from passthrough.worker.fuse_mount import unmount
from plugin.mounting import detaching, mountpoints
from plugin.mounting.keeper import Keeper, keeping
from plugin.volume import VolumeName
from tests.support.fakes.dockerd import mounted
from tests.support.fakes.worker import command
from tests.support.tools.mount_specs import SERVE, mount_spec
from tests.support.tools.mounts import mounted_on
from tests.support.tools.processes import workers
from tests.support.tools.service import Service

pytestmark = pytest.mark.full

MOUNTS = 100
CALLERS = 4
HUNG = detaching.THREADS + 6
HEALTHY = 20


@pytest.mark.alone
@pytest.mark.slow
def test_a_signal_unmounts_100_volumes_cleanly(tmp_path: Path) -> None:
    """With real workers that have served a file each."""
    service = Service(tmp_path)
    (tmp_path / "data").mkdir()
    with mounted_on(tmp_path / "data", "tmpfs"):  # no wait for a disk
        service.start()

        def mount(name: str) -> None:
            service.call("VolumeDriver.Create", Name=name)
            target = Path(service.call("VolumeDriver.Mount", Name=name, ID="i")["Mountpoint"])
            (target / "file").write_text(name)

        with ThreadPoolExecutor(CALLERS) as callers:
            for _ in callers.map(mount, (f"v{number}" for number in range(MOUNTS))):
                pass
        assert len(service.mounted()) == MOUNTS
        status, seconds = service.end(signal.SIGTERM)
        assert status == 0
        assert service.mounted() == []
        assert list((tmp_path / "mounts").iterdir()) == []
        assert "WARNING" not in service.log.read_text()
        assert seconds < 8


async def mount_all(keeper: Keeper, source: Path, names: list[str]) -> None:
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(keeper.mount, mount_spec(source, name=VolumeName(name)))


async def test_the_end_reads_the_mount_table_once(
    tmp_path: Path, mounts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def read() -> list[mountinfo.MountEntry]:
        reads.append("all")
        return real_read()

    def at(target: bytes) -> list[mountinfo.MountEntry]:
        reads.append(os.fsdecode(target))
        return real_at(target)

    real_read, real_at = mountinfo.read, mountinfo.at
    async with keeping(mounts, SERVE) as keeper:
        await mount_all(keeper, tmp_path, [f"v{number}" for number in range(10)])
        monkeypatch.setattr(mountinfo, "read", read)
        monkeypatch.setattr(mountinfo, "at", at)
    assert reads == ["all"]
    assert mounted(mounts) == []


@pytest.mark.alone
@pytest.mark.logs("volume hung[0-9]+: its worker does not answer and is killed")
async def test_hanging_workers_on_all_threads_do_not_cost_healthy_ones(
    tmp_path: Path, mounts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The healthy mounts wait for a thread, which is no fault of their workers."""
    hung = [f"hung{number}" for number in range(HUNG)]
    healthy = [f"well{number}" for number in range(HEALTHY)]
    ends: dict[str, int] = {}

    def unmount_and_wait(target: Path) -> None:
        unmount(target)
        if target.name in ends:
            select.select([ends[target.name]], [], [])

    monkeypatch.setattr(mountpoints, "unmount", unmount_and_wait)
    caplog.set_level(logging.WARNING)
    try:
        async with keeping(mounts, command("ignore SIGTERM")) as keeper:
            await mount_all(keeper, tmp_path, [*hung, *healthy])
            ends |= {name: os.pidfd_open(keeper.worker_pid(VolumeName(name))) for name in hung}
            assert len(workers()) == HUNG + HEALTHY
        assert mounted(mounts) == []
        assert list(mounts.iterdir()) == []
        ended = [text.split(":")[0].removeprefix("volume ") for text in caplog.messages]
        assert sorted(ended) == sorted(hung)
    finally:
        for fd in ends.values():
            os.close(fd)


KILLED = "volume slow: its worker does not answer and is killed"


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(
    "used_s", [pytest.param(0.0), pytest.param(3.0, marks=pytest.mark.logs(KILLED))]
)
async def test_workers_have_the_time_that_requests_in_flight_have_not_used(
    mounts: Path, monkeypatch: pytest.MonkeyPatch, used_s: float
) -> None:
    """The deadline of a worker moves while others answer, until the plugin has used its time."""

    def unmount_late(target: Path) -> None:
        time.sleep(late_s.pop(target.name, 0.0))
        unmount(target)

    late_s = {"quick": 1.0, "slow": 2.5}
    monkeypatch.setattr(detaching, "SHUTDOWN_DEADLINE_S", 2.0)
    monkeypatch.setattr(detaching, "SHUTDOWN_LIMIT_S", 4.0)
    monkeypatch.setattr(mountpoints, "unmount", unmount_late)
    async with keeping(mounts, SERVE) as keeper:
        await mount_all(keeper, mounts.parent, ["quick", "slow"])
        keeper.note_end()
        await trio.sleep(used_s)

    assert mounted(mounts) == []
