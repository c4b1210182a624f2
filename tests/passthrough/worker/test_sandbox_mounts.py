"""sandbox.py: the mounts that a worker sees, and the mounts that its own mounts reach."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough.linux import mountinfo, syscalls
from passthrough.linux.mountinfo import FSTYPE
from passthrough.worker import fuse_mount
from tests.support.fakes.keeper import LIMIT_S, Keeper, on_mount
from tests.support.tools.mounts import MS_BIND, MS_SHARED


def mounts_of(pid: int) -> list[mountinfo.MountEntry]:
    return mountinfo.read(f"/proc/{pid}/mountinfo")


def test_a_worker_sees_no_mount_of_passfs(
    source: Path, tmp_path: Path, ask_at: Callable[[Path], Keeper]
) -> None:
    """The worker sees neither its own mount, nor another, nor one inside those."""
    own, other = source / "own", source / "other"
    for path in (own, other):
        path.mkdir()
        (path / "below").touch()
    unserved = Keeper(tmp_path, other, tmp_path / "unused")
    keeper = ask_at(own)

    pid = keeper.serve().pid

    assert [mount for mount in mounts_of(pid) if mount.fstype == FSTYPE] == []
    assert on_mount("ls", str(own / "own"), str(own / "other")).count("below") == 2
    unserved.close()
    syscalls.umount2(os.fsencode(other), syscalls.MNT_DETACH)


@pytest.fixture
def ask_at(source: Path, tmp_path: Path) -> Iterator[Callable[[Path], Keeper]]:
    """Mount at a directory that the test chooses."""
    keepers = []

    def make(mountpoint: Path) -> Keeper:
        keepers.append(Keeper(source, mountpoint, tmp_path / "stderr"))
        return keepers[-1]

    yield make
    for keeper in keepers:
        keeper.close()
        syscalls.umount2(os.fsencode(keeper.mountpoint), syscalls.MNT_DETACH | syscalls.MNT_FORCE)


@pytest.fixture
def shared_source(source: Path) -> Iterator[Path]:
    """The source as a shared mount, as on most hosts: its slaves receive its mount events."""
    path = os.fsencode(source)
    syscalls.mount(path, path, b"", MS_BIND, b"")
    syscalls.mount(b"none", path, b"", MS_SHARED, b"")
    yield source
    syscalls.umount2(path, syscalls.MNT_DETACH)


def test_mounts_below_the_source_follow_the_host(
    shared_source: Path, mountpoint: Path, tmp_path: Path
) -> None:
    before, later = shared_source / "before", shared_source / "later"
    for path in (before, later):
        path.mkdir()
    syscalls.mount(b"disk", os.fsencode(before), b"tmpfs", 0, b"")
    (before / "file").write_text("was there")
    keeper = Keeper(shared_source, mountpoint, tmp_path / "stderr")
    try:
        pid = keeper.serve().pid
        assert on_mount("cat", f"{mountpoint}/before/file") == "was there"
        syscalls.mount(b"disk", os.fsencode(later), b"tmpfs", 0, b"")
        (later / "file").write_text("came")
        assert on_mount("cat", f"{mountpoint}/later/file") == "came"
        for path in (before, later):
            syscalls.umount2(os.fsencode(path), syscalls.MNT_DETACH)
        assert [mount.target for mount in mounts_of(pid)] == [b"/"]
    finally:
        keeper.close()


def test_a_volume_bound_below_its_own_source_is_not_entered(
    shared_source: Path, mountpoint: Path, tmp_path: Path
) -> None:
    """If it were entered, the worker would wait for its own answer."""
    loop = shared_source / "loop"
    loop.mkdir()
    keeper = Keeper(shared_source, mountpoint, tmp_path / "stderr")
    # It ends a worker that waits: a request in service outlives the caller that sent it.
    watchdog = threading.Timer(LIMIT_S, fuse_mount.unmount, (mountpoint,), {"abort": True})
    watchdog.start()
    try:
        pid = keeper.serve().pid
        syscalls.mount(os.fsencode(mountpoint), os.fsencode(loop), b"", MS_BIND, b"")
        assert [mount.fstype for mount in mounts_of(pid)][1:] == [FSTYPE]
        # A listing without lookups has the name.
        found = on_mount("sh", "-c", 'find "$1" 2>&- || true', "sh", str(mountpoint)).splitlines()
        assert found in ([str(mountpoint)], [str(mountpoint), f"{mountpoint}/loop"])
        with pytest.raises(subprocess.CalledProcessError):
            on_mount("stat", f"{mountpoint}/loop")
        syscalls.umount2(os.fsencode(loop), 0)
        assert on_mount("stat", "--format=%F", f"{mountpoint}/loop") == "directory\n"
    finally:
        watchdog.cancel()
        watchdog.join()
        keeper.close()


def test_mounts_of_the_worker_do_not_reach_the_host(
    shared_source: Path, mountpoint: Path, tmp_path: Path
) -> None:
    """The worker detaches the old root and mounts of passfs only in its own namespace."""
    (shared_source / "disk").mkdir()
    syscalls.mount(b"disk", os.fsencode(shared_source / "disk"), b"tmpfs", 0, b"")
    before = [mount[2:] for mount in mountinfo.read()]
    keeper = Keeper(shared_source, mountpoint, tmp_path / "stderr")
    keeper.serve()
    after = [mount[2:] for mount in mountinfo.read() if mount.target != os.fsencode(mountpoint)]
    keeper.close()
    syscalls.umount2(os.fsencode(shared_source / "disk"), syscalls.MNT_DETACH)

    assert after == before
