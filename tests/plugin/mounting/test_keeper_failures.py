"""keeper.py: a failed mount leaves nothing, and other mounts and files stay."""
# ruff: noqa: ASYNC220, ASYNC221, ASYNC240 - calls on local directories; no other task is ready

import errno
import logging
import os
import select
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio
from trio.testing import MockClock

from passthrough.linux import mountinfo
from passthrough.options.effective import Effective
from passthrough.worker import control
from passthrough.worker.fuse_mount import mount, unmount
from plugin.errors import MountFailed
from plugin.mounting import detaching, mountpoints
from plugin.mounting.fd_store import FdStore, Inherited
from plugin.mounting.keeper import Keeper, keeping
from plugin.mounting.mount_spec import MOUNT_DEADLINE_S, MountSpec
from plugin.reserve import HiddenReserve
from tests.support.fakes.dockerd import mounted
from tests.support.fakes.worker import command
from tests.support.tools.mount_specs import DIRECTORY, NAME, SERVE, in_thread, mount_spec
from tests.support.tools.options import effective
from tests.support.tools.processes import kill_all, workers


async def test_a_worker_that_does_not_serve_leaves_nothing(mounts: Path, source: Path) -> None:
    async with keeping(mounts, command("refuse")) as keeper:
        with pytest.raises(MountFailed, match="cannot be served: the kernel is too old"):
            await keeper.mount(mount_spec(source))
        assert list(mounts.iterdir()) == []
        assert workers() == set()


@pytest.mark.logs(
    "volume data: mount lost: worker [0-9]+ ended with status 0; the volume fails until"
)
async def test_a_worker_that_ends_at_once_is_a_failure_or_a_loss(
    mounts: Path, source: Path
) -> None:
    async with keeping(mounts, command("report and end")) as keeper:
        send, receive = trio.open_memory_channel[str](1)
        try:
            await keeper.mount(mount_spec(source, on_loss=send.send_nowait))
        except MountFailed:
            assert list(mounts.iterdir()) == []
        else:
            await receive.receive()
            assert keeper.worker_pid(NAME) == 0


async def test_a_worker_that_hangs_fails_the_mount_at_the_deadline(
    mounts: Path, source: Path, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with keeping(mounts, command("report nothing")) as keeper:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused_at_the_deadline, keeper, mount_spec(source))
            while "volume data: fake: thinking" not in caplog.messages:
                await trio.lowlevel.checkpoint()
            mock_clock.jump(MOUNT_DEADLINE_S)
        assert list(mounts.iterdir()) == []
        assert workers() == set()


async def refused_at_the_deadline(keeper: Keeper, spec: MountSpec) -> None:
    with pytest.raises(MountFailed) as refusal:
        await keeper.mount(spec)
    assert str(refusal.value) == (
        "volume 'data': starting its worker has not finished within 18 s of the Mount;"
        " check that the file system of its source answers; its last log lines: fake: thinking"
    )


async def test_a_source_that_hangs_fails_the_mount_and_is_closed_when_it_opens(
    mounts: Path, source: Path, autojump_clock: MockClock
) -> None:
    del autojump_clock  # jumps to the deadline once all tasks wait
    responds = threading.Event()
    opened = []

    def open_source() -> int:
        responds.wait()
        opened.append(os.open(source, os.O_PATH))
        return opened[0]

    limiter = trio.CapacityLimiter(1)
    async with keeping(mounts, SERVE) as keeper:
        with pytest.raises(MountFailed, match=r"opening source '.*' has not finished"):
            await keeper.mount(mount_spec(source, open_source=open_source, limiter=limiter))
        assert list(mounts.iterdir()) == []
        responds.set()
        async with limiter:  # the thread has ended
            assert len(opened) == 1


async def test_a_source_that_cannot_be_opened_is_reported(mounts: Path, source: Path) -> None:
    async with keeping(mounts, SERVE) as keeper:
        source.rmdir()
        with pytest.raises(MountFailed, match=r"opening source '.*' failed: No such file"):
            await keeper.mount(mount_spec(source))
        assert list(mounts.iterdir()) == []


async def test_a_cancelled_mount_leaves_nothing(mounts: Path, source: Path) -> None:
    fifo = mounts.parent / "fifo"
    os.mkfifo(fifo)
    async with keeping(mounts, command("wait for FIFO", fifo)) as keeper:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.mount, mount_spec(source))
            writer = await in_thread(os.open, fifo, os.O_WRONLY)  # returns when the worker waits
            nursery.cancel_scope.cancel()
        os.close(writer)
        assert list(mounts.iterdir()) == []
        assert workers() == set()


def no_descriptors(*_: object) -> NoReturn:
    raise OSError(errno.EMFILE, "Too many open files")


async def fails_without_a_trace(keeper: Keeper, mounts: Path, source: Path) -> None:
    """Mount without descriptors; nothing is left of it."""
    with pytest.raises(MountFailed, match=r"mounting at .*/data failed: Too many open"):
        await keeper.mount(mount_spec(source))
    assert mounted(mounts) == []
    assert list(mounts.iterdir()) == []


async def test_a_failure_to_read_the_mount_table_leaves_nothing(
    mounts: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mount_and_fail(target: Path, config: Effective) -> int:
        fd = mount(target, config)
        patch.setattr(mountinfo, "at", fail_once)
        return fd

    def fail_once(_: bytes) -> list[mountinfo.MountEntry]:
        patch.undo()  # the undo of the mount may read the table again
        no_descriptors()

    async with keeping(mounts, SERVE) as keeper:
        with monkeypatch.context() as patch:
            patch.setattr(mountpoints, "mount", mount_and_fail)
            await fails_without_a_trace(keeper, mounts, source)


async def test_a_failure_to_make_a_control_page_leaves_nothing(
    mounts: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "make", no_descriptors)
    async with keeping(mounts, SERVE) as keeper:
        await fails_without_a_trace(keeper, mounts, source)


@pytest.mark.logs("volume data: mount lost: worker [0-9]+ was killed by SIGKILL")
async def test_users_of_a_lost_mount_do_not_wait_for_descriptors_that_stay_stored(
    mounts: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service manager that is busy does not drop them."""
    stored: list[int] = []

    def add(_: FdStore, __: int, descriptors: Mapping[str, int]) -> None:
        stored.extend(os.dup(fd) for fd in descriptors.values())

    monkeypatch.setattr(FdStore, "add", add)
    monkeypatch.setattr(FdStore, "remove", lambda *_: False)
    async with keeping(mounts, SERVE, Inherited(FdStore("busy"))) as keeper:
        await keeper.mount(mount_spec(source))
        kill_all(keeper.worker_pid(NAME))
        try:
            with pytest.raises(OSError, match=r"not connected|connection abort"):
                await in_thread(os.stat, keeper.target(DIRECTORY) / "file")
        finally:
            for fd in stored:
                os.close(fd)
        await keeper.unmount(NAME)


async def test_a_foreign_mount_at_the_mount_point_stays(mounts: Path, source: Path) -> None:
    async with keeping(mounts, SERVE) as keeper:
        keeper.target(DIRECTORY).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", keeper.target(DIRECTORY)], check=True)
        try:
            with pytest.raises(MountFailed, match="a file system of type tmpfs is mounted on it"):
                await keeper.mount(mount_spec(source))
        finally:
            subprocess.run(["umount", keeper.target(DIRECTORY)], check=True)


@pytest.mark.logs("cannot remove .*/mounts/data: Directory not empty")
async def test_files_in_a_mount_point_are_never_removed(mounts: Path, source: Path) -> None:
    """A program may have written there while nothing was mounted."""
    mounts.mkdir()
    (mounts / "data").mkdir()
    (mounts / "data" / "file").touch()
    async with keeping(mounts, SERVE) as keeper:
        await keeper.mount(mount_spec(source))
        await keeper.unmount(NAME)
        assert mounted(mounts) == []
        assert (mounts / "data" / "file").exists()
        await keeper.mount(mount_spec(source))  # over the file, as before
        assert mounted(mounts) == ["data"]


@pytest.mark.logs("mounts: workers that do not answer are killed")
async def test_a_worker_that_hangs_does_not_delay_the_start(
    mounts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mount has no record and is unmounted, and umount2(2) may wait for the worker."""
    (mounts / "left").mkdir(parents=True)
    worker = subprocess.Popen(["sleep", "infinity"])
    life, log, ended = os.pipe(), os.pipe(), os.pidfd_open(worker.pid)
    kept = {
        "fuse": mount(mounts / "left", effective()),
        "life": life[1],
        "log": log[0],
        "process": os.dup(ended),
    }

    def unmount_and_wait(target: Path) -> None:
        unmount(target)
        select.select([ended], [], [])

    monkeypatch.setattr(mountpoints, "unmount", unmount_and_wait)
    monkeypatch.setattr(detaching, "UNMOUNT_DEADLINE_S", 0.1)
    with trio.fail_after(10):
        async with keeping(mounts, SERVE, Inherited(stored={7: kept})):
            assert mounted(mounts) == []
            assert list(mounts.iterdir()) == []
    assert worker.wait() == -signal.SIGKILL
    for fd in (life[0], log[1], ended):
        os.close(fd)


@pytest.mark.logs(
    "volume data: (its worker does not answer and is killed|umount2.2. still hangs after the kill)"
)
@pytest.mark.logs("mounts/data: Device or resource busy")
async def test_a_mount_counts_as_gone_if_its_unmount_hangs_after_the_kill(
    mounts: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    ended = threading.Semaphore(0)

    def wait_and_unmount(target: Path) -> None:
        answers.wait()
        try:
            unmount(target)
        finally:
            ended.release()

    monkeypatch.setattr(mountpoints, "unmount", wait_and_unmount)
    monkeypatch.setattr(detaching, "UNMOUNT_DEADLINE_S", 0.1)
    monkeypatch.setattr(detaching, "AFTER_KILL_S", 0.1)
    async with keeping(mounts, SERVE) as keeper:
        await keeper.mount(mount_spec(source))
        try:
            await keeper.unmount(NAME)
            assert mounted(mounts) == ["data"]
        finally:
            answers.set()
        assert ended.acquire(timeout=10)
        assert ended.acquire(timeout=10)
        await keeper.mount(mount_spec(source))
        assert mounted(mounts) == ["data"]
        await keeper.unmount(NAME)
        assert mounted(mounts) == []
        assert list(mounts.iterdir()) == []


def test_two_volumes_never_share_a_mount_point_where_case_is_ignored(
    mounts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on ext4 with casefold, which keeps the case of the first name."""
    (mounts / "data").mkdir(parents=True)
    mkdir = Path.mkdir

    def mkdir_folding(path: Path, **options: Any) -> None:
        mkdir(path.with_name(path.name.casefold()), **options)

    monkeypatch.setattr(Path, "mkdir", mkdir_folding)
    with HiddenReserve(mounts) as room, pytest.raises(FileExistsError):
        mountpoints.attach(mounts / "Data", effective(), room)
    assert mounted(mounts) == []
