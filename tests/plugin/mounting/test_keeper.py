"""keeper.py: mounts that succeed, their loss, and the start and end of the keeper."""
# ruff: noqa: ASYNC240 - calls on local directories; no other task is ready

import os
from pathlib import Path

import pytest
import trio

from passthrough.options.choices import SessionKind, Transport
from passthrough.options.effective import Effective
from passthrough.worker.fuse_mount import mount, unmount
from plugin.errors import CannotStart
from plugin.mounting import standby, worker as worker_module
from plugin.mounting.keeper import Keeper, keeping
from plugin.volume import VolumeName
from tests.support.fakes.dockerd import mounted
from tests.support.fakes.worker import command
from tests.support.tools.mount_specs import DIRECTORY, NAME, SERVE, in_thread, mount_spec
from tests.support.tools.options import effective
from tests.support.tools.processes import children, kill_all, workers
from tests.support.tools.rings import switched_on


async def lose_worker(keeper: Keeper, source: Path, config: Effective | None = None) -> str:
    """Mount, kill the worker with its guards, and return the reason of the loss."""
    send, receive = trio.open_memory_channel[str](1)
    await keeper.mount(mount_spec(source, on_loss=send.send_nowait, options=config or effective()))
    kill_all(keeper.worker_pid(NAME))
    return await receive.receive()


# Mounts, mostly with real workers.


async def test_a_mounted_volume_is_served(mounts: Path, source: Path) -> None:
    async with keeping(mounts) as keeper:
        await keeper.mount(mount_spec(source))
        target = keeper.target(DIRECTORY)
        assert target == mounts / "data"
        await in_thread((target / "file").write_text, "hello")
        assert (source / "file").read_text() == "hello"
        guards = workers()  # each one serves itself if it has no standby
        assert keeper.worker_pid(NAME) in guards.union(*map(children, guards))
        await keeper.unmount(NAME)
        assert list(mounts.iterdir()) == []
        assert keeper.worker_pid(NAME) == 0


async def test_a_whole_mount_stays_at_the_next_mount(mounts: Path, source: Path) -> None:
    async with keeping(mounts) as keeper:
        await keeper.mount(mount_spec(source))
        pid = keeper.worker_pid(NAME)
        await keeper.mount(mount_spec(source))
        assert keeper.worker_pid(NAME) == pid
        assert mounted(mounts) == ["data"]


async def test_unmounting_an_unmounted_volume_succeeds(mounts: Path) -> None:
    async with keeping(mounts) as keeper:
        await keeper.unmount(NAME)


@pytest.mark.logs(
    "volume data: mount lost: worker [0-9]+ was killed by SIGKILL; the volume fails until"
)
async def test_calls_after_the_death_of_a_worker_fail(mounts: Path, source: Path) -> None:
    async with keeping(mounts) as keeper:
        assert await lose_worker(keeper, source) == "its worker was killed by SIGKILL"
        assert keeper.worker_pid(NAME) == 0
        with pytest.raises(OSError, match="not connected"):
            await in_thread(os.listdir, keeper.target(DIRECTORY))
        assert mounted(mounts) == ["data"]


@pytest.mark.logs(
    "volume data: mount lost: worker [0-9]+ was killed by SIGKILL; the volume fails until"
)
@pytest.mark.logs("volume data: its mount is not whole, making a new one")
async def test_calls_after_the_death_of_a_worker_over_io_uring_fail_until_the_next_mount(
    mounts: Path, source: Path
) -> None:
    over_rings = effective(session=SessionKind.KERNEL, transport=Transport.IO_URING)
    async with keeping(mounts) as keeper:
        with switched_on():
            assert await lose_worker(keeper, source, over_rings) == (
                "its worker was killed by SIGKILL"
            )
        # While the kernel tears the rings down, a request may fail with ECONNABORTED, or with
        # ECANCELED (fs/fuse/dev_uring.c, fuse_uring_send_in_task).
        with pytest.raises(OSError, match=r"not connected|connection abort|Operation canceled"):
            await in_thread(os.listdir, keeper.target(DIRECTORY))
        with switched_on():
            await keeper.mount(mount_spec(source, options=over_rings))
        await in_thread((keeper.target(DIRECTORY) / "file").write_text, "hello")
        assert (source / "file").read_text() == "hello"


@pytest.mark.logs("volume data: bug in supervising worker [0-9]+")
@pytest.mark.logs(
    "volume data: mount lost: worker [0-9]+ is not supervised any more, because of a bug"
)
async def test_a_bug_in_supervising_a_worker_costs_one_volume(
    mounts: Path, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(returncode: int) -> str:
        raise ZeroDivisionError(returncode)

    async with keeping(mounts, SERVE) as keeper:
        await keeper.mount(mount_spec(source, name=VolumeName("well")))
        with monkeypatch.context() as patch:
            patch.setattr(standby, "describe_end", fail)
            reason = await lose_worker(keeper, source)
            assert reason.startswith("its worker is not supervised any more")
        assert keeper.worker_pid(NAME) == 0
        with pytest.raises(OSError, match="not connected"):
            await in_thread(os.listdir, keeper.target(DIRECTORY))
        assert keeper.worker_pid(VolumeName("well")) > 0
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.logs("was killed by SIGKILL")
@pytest.mark.logs("volume data: its mount is not whole, making a new one")
async def test_the_next_mount_replaces_a_dead_mount(mounts: Path, source: Path) -> None:
    async with keeping(mounts) as keeper:
        await lose_worker(keeper, source)
        await keeper.mount(mount_spec(source))
        assert mounted(mounts) == ["data"]
        assert await in_thread(os.listdir, keeper.target(DIRECTORY)) == []


@pytest.mark.logs("was killed by SIGKILL")
async def test_a_dead_mount_can_be_unmounted(mounts: Path, source: Path) -> None:
    async with keeping(mounts) as keeper:
        await lose_worker(keeper, source)
        await keeper.unmount(NAME)
        assert list(mounts.iterdir()) == []


@pytest.mark.logs("its mount is not whole")
async def test_a_covered_mount_is_replaced(mounts: Path, source: Path) -> None:
    """A mount point has one mount, even after another program has mounted on it."""
    async with keeping(mounts) as keeper:
        await keeper.mount(mount_spec(source))
        os.close(mount(keeper.target(DIRECTORY), effective()))
        assert mounted(mounts) == ["data", "data"]
        await keeper.mount(mount_spec(source))
        assert mounted(mounts) == ["data"]
        assert await in_thread(os.listdir, keeper.target(DIRECTORY)) == []


@pytest.mark.logs("its mount is not whole")
async def test_a_mount_that_was_unmounted_by_hand_is_made_anew(mounts: Path, source: Path) -> None:
    """An open file keeps the first worker alive, but its mount point is a bare directory."""
    async with keeping(mounts) as keeper:
        await keeper.mount(mount_spec(source))
        first = keeper.worker_pid(NAME)
        (source / "file").touch()
        fd = await in_thread(os.open, keeper.target(DIRECTORY) / "file", os.O_RDONLY)
        unmount(keeper.target(DIRECTORY))
        await keeper.mount(mount_spec(source))
        assert mounted(mounts) == ["data"]
        assert keeper.worker_pid(NAME) != first
        await in_thread(os.close, fd)


@pytest.mark.logs(
    "volume data: mount lost: worker [0-9]+ ended with status 0; the volume fails until"
)
async def test_an_unmount_by_hand_ends_the_worker_and_is_a_loss(mounts: Path, source: Path) -> None:
    async with keeping(mounts) as keeper:
        send, receive = trio.open_memory_channel[str](1)
        await keeper.mount(mount_spec(source, on_loss=send.send_nowait))
        await in_thread(unmount, keeper.target(DIRECTORY))
        assert await receive.receive() == "its worker ended with status 0"


async def test_open_files_are_served_after_the_unmount(mounts: Path, source: Path) -> None:
    async with keeping(mounts) as keeper:
        await keeper.mount(mount_spec(source))
        fd = await in_thread(os.open, keeper.target(DIRECTORY) / "file", os.O_CREAT | os.O_RDWR)
        worker = keeper.worker_pid(NAME)
        await keeper.unmount(NAME)
        assert mounted(mounts) == []
        await in_thread(os.write, fd, b"after all")
        assert (source / "file").read_bytes() == b"after all"

        pidfd = os.pidfd_open(worker)
        await in_thread(os.close, fd)
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(pidfd)  # the worker ends by itself
        os.close(pidfd)


async def test_a_volume_can_be_mounted_again_while_the_old_mount_is_used(
    mounts: Path, source: Path
) -> None:
    async with keeping(mounts) as keeper:
        await keeper.mount(mount_spec(source))
        fd = await in_thread(os.open, keeper.target(DIRECTORY) / "file", os.O_CREAT | os.O_RDWR)
        await keeper.unmount(NAME)
        await keeper.mount(mount_spec(source))
        await in_thread(os.write, fd, b"old")
        assert await in_thread((keeper.target(DIRECTORY) / "file").read_text) == "old"
        await in_thread(os.close, fd)


# The start and the end of the keeper.


async def test_the_start_clears_mounts_of_a_dead_plugin_away(mounts: Path) -> None:
    for name in ("a", "b"):
        (mounts / name).mkdir(parents=True)
        for _ in "12":  # two on each other, as a crash loop of an old version may leave them
            os.close(mount(mounts / name, effective()))
    async with keeping(mounts):
        assert list(mounts.iterdir()) == []
        assert mounted(mounts) == []


async def test_a_mount_directory_refuses_a_second_plugin(mounts: Path, source: Path) -> None:
    """It would take the mounts of the first plugin for those of a dead one."""
    async with keeping(mounts, SERVE) as keeper:
        await keeper.mount(mount_spec(source))
        with pytest.raises(CannotStart, match=r"mounts its volumes in .*PASSFS_MOUNT_DIR"):
            async with keeping(mounts, SERVE):
                pass
        assert mounted(mounts) == ["data"]
    async with keeping(mounts, SERVE):
        pass


async def test_the_mount_directory_may_lie_behind_a_symlink(mounts: Path, source: Path) -> None:
    """Like /var/run: mountinfo lists mounts by their real paths."""
    mounts.mkdir()
    (mounts.parent / "link").symlink_to(mounts)
    async with keeping(mounts.parent / "link", SERVE) as keeper:
        await keeper.mount(mount_spec(source))
        pid = keeper.worker_pid(NAME)
        await keeper.mount(mount_spec(source))
        assert keeper.worker_pid(NAME) == pid
    assert mounted(mounts) == []


async def test_the_end_unmounts_all_volumes_and_ends_all_workers(
    mounts: Path, source: Path
) -> None:
    async with keeping(mounts) as keeper:
        for name in ("a", "b", "c"):
            await keeper.mount(mount_spec(source, name=VolumeName(name)))
        assert mounted(mounts) == ["a", "b", "c"]
    assert list(mounts.iterdir()) == []
    assert workers() == set()


async def test_the_end_kills_a_worker_that_ignores_it(
    mounts: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "END_GRACE_S", 0.1)
    async with keeping(mounts, command("ignore SIGTERM")) as keeper:
        await keeper.mount(mount_spec(source))
    assert list(mounts.iterdir()) == []
    assert workers() == set()


async def test_an_open_file_does_not_delay_the_end(mounts: Path, source: Path) -> None:
    async with keeping(mounts) as keeper:
        await keeper.mount(mount_spec(source))
        fd = await in_thread(os.open, keeper.target(DIRECTORY) / "file", os.O_CREAT | os.O_RDWR)
    assert workers() == set()
    with pytest.raises(OSError, match="not connected"):
        await in_thread(os.close, fd)  # FUSE_FLUSH fails, but the descriptor is closed
