"""The operations where something is mounted below the source."""

import errno
import functools
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.inodes import ROOT
from passthrough.linux import syscalls
from passthrough.linux.errors import os_error
from passthrough.worker import fuse_mount
from tests.support.tools.direct import descriptors_below, fails, listing
from tests.support.tools.options import effective

LIMIT_S = 10.0


@pytest.mark.logs("'dead' is left out of a listing")
def test_a_dead_mount_does_not_hide_its_neighbours(fs: PassthroughFs, source: Path) -> None:
    """Nobody can look at it, but the directory around it is as usable as before."""
    (source / "alive").touch()
    (source / "dead").mkdir()
    fuse_fd = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={fuse_fd},rootmode=40000,user_id=0,group_id=0"
    syscalls.mount(b"dead", os.fsencode(source / "dead"), b"fuse.other", 0, data.encode())
    os.close(fuse_fd)
    try:
        handle = fs.opendir(ROOT)
        names = [record.name for record, _ in fs.readdirplus(handle, 0)]
        fs.releasedir(handle)
    finally:
        fuse_mount.unmount(source / "dead")

    assert sorted(names) == [b".", b"..", b"alive"]


@pytest.fixture
def unanswered(source: Path) -> Iterator[Path]:
    """A mount of passfs below the source that answers nothing, as a worker's own would not."""
    (source / "own").mkdir()
    fuse_fd = fuse_mount.mount(source / "own", effective())
    # Who waits for it hears no signal: should the test ask it anything, this ends the wait.
    abort = functools.partial(fuse_mount.unmount, source / "own", abort=True)
    watchdog = threading.Timer(LIMIT_S, abort)
    watchdog.start()
    yield source / "own"
    watchdog.cancel()
    watchdog.join()
    abort()
    os.close(fuse_fd)


@pytest.mark.logs("is left out of a listing: .*; this is said once for each cause")
def test_a_name_that_every_listing_leaves_out_is_logged_once(
    fs: PassthroughFs,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("one", "another", "denied"):
        (source / name).touch()
    real = syscalls.open_same_mount

    def refusing(directory: int, name: bytes) -> int:
        if name == b"denied":
            raise os_error(errno.EACCES)
        if name in {b"one", b"another"}:
            raise os_error(errno.EIO)
        return real(directory, name)

    monkeypatch.setattr(syscalls, "open_same_mount", refusing)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert set(listing(fs)) == {b".", b".."}

    assert len(caplog.records) == 2
    assert "Input/output" in caplog.text
    assert "Permission" in caplog.text


@pytest.mark.logs("'own' is left out of a listing")
def test_a_mount_of_passfs_below_the_source_is_not_entered(
    fs: PassthroughFs, source: Path, unanswered: Path
) -> None:
    """It may lead to this very process, which would wait for itself."""
    (source / "beside").touch()

    fails(errno.ELOOP, lambda: fs.lookup(ROOT, os.fsencode(unanswered.name)))
    assert set(listing(fs)) == {b".", b"..", b"beside"}
    assert descriptors_below(unanswered) == set()


def test_a_mount_that_is_gone_by_the_time_it_is_looked_at_is_stale(
    fs: PassthroughFs, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "disk").mkdir()
    syscalls.mount(b"disk", os.fsencode(source / "disk"), b"tmpfs", 0, b"")
    real = syscalls.mount_id

    def unmounted(fd: int) -> int:
        syscalls.umount2(os.fsencode(source / "disk"), syscalls.MNT_DETACH)
        return real(fd)

    monkeypatch.setattr(syscalls, "mount_id", unmounted)

    fails(errno.ESTALE, lambda: fs.lookup(ROOT, b"disk"))
