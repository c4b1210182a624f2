"""`passfs unmount`."""

import errno
import os
import signal
from pathlib import Path

import pytest

from passthrough.linux import mountinfo
from passthrough.standalone import records, unmounting
from passthrough.standalone.unmounting import UnmountError
from passthrough.worker import fuse_mount
from tests.support.tools.mounts import bound, mounted_on, mounts_at
from tests.support.tools.options import effective
from tests.support.tools.processes import wait_until
from tests.support.tools.standalone import passfs, run, serving, wait_for_end

pytestmark = pytest.mark.full


def recorded() -> set[str]:
    return {path.name for path in records.DIRECTORY.iterdir()}


def test_a_mount_in_use_is_unmounted_lazily_alone(source: Path, mountpoint: Path) -> None:
    passfs("mount", source, mountpoint)
    processes = serving(mountpoint)
    with (mountpoint / "file").open() as file:
        busy = passfs("unmount", mountpoint)
        assert busy == (32, "", f"passfs unmount: {mountpoint}: Device or resource busy\n")

        assert passfs("unmount", "--lazy", mountpoint) == (0, "", "")
        assert mounts_at(mountpoint) == []
        assert file.read() == "below"
        assert serving_now(processes)

    wait_for_end(processes)


def serving_now(processes: set[int]) -> bool:
    return all(Path(f"/proc/{pid}").exists() for pid in processes)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_mount_without_processes_is_unmounted(
    source: Path, mountpoint: Path, number: signal.Signals
) -> None:
    passfs("mount", source, mountpoint)
    processes = serving(mountpoint)
    os.killpg(os.getpgid(min(processes)), number)
    wait_for_end(processes)
    # A call that the end of the connection meets has another error.
    wait_until(lambda: run("stat", mountpoint).err.endswith("endpoint is not connected\n"))

    assert passfs("unmount", mountpoint) == (0, "", "")

    assert mounts_at(mountpoint) == []
    assert recorded() == set()


def test_a_mount_that_is_bound_elsewhere_is_served_on(
    source: Path, mountpoint: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmounting, "END_S", 0.05)
    passfs("mount", source, mountpoint)
    processes = serving(mountpoint)
    with bound(mountpoint, base / "other"):
        with pytest.raises(UnmountError, match="is unmounted, but its processes go on after"):
            unmounting.unmount(str(mountpoint))

        assert mounts_at(mountpoint) == []
        assert (base / "other" / "file").read_text() == "below"

    wait_for_end(processes)


def test_other_mounts_are_refused(mountpoint: Path, base: Path) -> None:
    other = base / "other"
    other.mkdir()
    with mounted_on(other, "tmpfs"):
        for directory in (mountpoint, other):
            message = f"passfs unmount: {directory} is no mount point of passfs\n"
            assert passfs("unmount", directory) == (32, "", message)
        missing = base / "missing"
        assert passfs("unmount", missing).err == (
            f"passfs unmount: {missing}: No such file or directory\n"
        )
        assert len(mounts_at(other)) == 1


def test_the_mount_of_a_volume_is_refused(mountpoint: Path) -> None:
    fuse_fd = fuse_mount.mount(mountpoint, effective())
    try:
        done = passfs("unmount", mountpoint)
    finally:
        os.close(fuse_fd)

    assert done.status == 32
    assert done.err.startswith(f"passfs unmount: {mountpoint} is the mount of a volume: stop the")
    assert len(mounts_at(mountpoint)) == 1


def test_the_records_of_mounts_that_are_gone_are_dropped(
    source: Path, mountpoint: Path, base: Path
) -> None:
    passfs("mount", source, mountpoint)
    processes = serving(mountpoint)
    run("umount", mountpoint)
    wait_for_end(processes)
    assert len(recorded()) == 1
    (other := base / "other").mkdir()

    passfs("mount", source, other)

    (mounted,) = mounts_at(other)
    assert recorded() == {f"{os.major(mounted.device)}:{os.minor(mounted.device)}"}
    assert passfs("unmount", other).status == 0
    assert recorded() == set()


def test_a_mount_that_hangs_delays_no_look(source: Path, mountpoint: Path) -> None:
    """The command finds the mount without a request to it."""
    passfs("mount", source, mountpoint)
    processes = serving(mountpoint)
    os.killpg(os.getpgid(min(processes)), signal.SIGSTOP)
    try:
        (found,) = mounts_at(mountpoint)
        fd = os.open(mountpoint, os.O_PATH)
        try:
            assert mountinfo.of(mountinfo.read(), fd) == found
        finally:
            os.close(fd)
    finally:
        os.killpg(os.getpgid(min(processes)), signal.SIGCONT)

    assert passfs("unmount", mountpoint).status == 0


def test_a_directory_that_is_no_directory_has_the_reason() -> None:
    with pytest.raises(OSError) as caught:
        unmounting.unmount("/dev/null/x")
    assert caught.value.errno == errno.ENOTDIR
