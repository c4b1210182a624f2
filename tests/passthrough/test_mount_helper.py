"""mount(8) with the helper `mount.fuse.passfs` in /sbin, and lines of fstab(5)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tools.callers import USER
from tests.support.tools.mounts import mounts_at, options_at
from tests.support.tools.standalone import (
    SBIN,
    helper_in_sbin,
    own_records,
    run,
    serving,
    wait_for_end,
)

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def _helper(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "overlay").mkdir()
    with own_records(), helper_in_sbin(tmp_path / "overlay"):
        yield


@pytest.fixture
def fstab(tmp_path: Path) -> Path:
    return tmp_path / "fstab"


def unmounted(mountpoint: Path) -> None:
    """Unmount by umount(8), and wait for the processes."""
    processes = serving(mountpoint)
    assert run("umount", mountpoint) == (0, "", "")
    wait_for_end(processes)


def test_the_type_is_mounted(source: Path, mountpoint: Path) -> None:
    (source / "file").write_text("below")

    done = run("mount", "-t", "fuse.passfs", "-o", "ro,cache=never", source, mountpoint)

    assert done == (0, "", "")
    assert (mountpoint / "file").read_text() == "below"
    assert {"ro", "nosuid", "nodev"} <= options_at(mountpoint)
    unmounted(mountpoint)


def test_a_line_of_fstab_is_mounted_once(source: Path, mountpoint: Path, fstab: Path) -> None:
    """mount(8) compares the line with the source and the mount point of each mount."""
    os.chown(source, USER.uid, USER.gid)
    options = "owner=0:0,cache=auto,nofail,_netdev,x-systemd.requires-mounts-for=/"
    fstab.write_text(f"{source} {mountpoint} fuse.passfs {options} 0 0\n")

    assert run("mount", "-T", fstab, "-a") == (0, "", "")
    assert run("mount", "-T", fstab, "-a") == (0, "", "")

    (mounted,) = mounts_at(mountpoint)
    assert mounted.source == os.fsencode(source)
    found = run("findmnt", "-n", "-o", "SOURCE,FSTYPE", mountpoint)
    assert found.out.split() == [str(source), "fuse.passfs"]
    (mountpoint / "by root").touch()
    assert (source / "by root").stat().st_uid == USER.uid
    unmounted(mountpoint)


@pytest.mark.parametrize("words", ["defaults", "user,exec,rw", "readonly,nofail", "group,noauto"])
def test_a_line_of_fstab_is_mounted_by_its_mount_point(
    source: Path, mountpoint: Path, fstab: Path, words: str
) -> None:
    fstab.write_text(f"{source} {mountpoint} fuse.passfs {words} 0 0\n")

    assert run("mount", "-T", fstab, mountpoint) == (0, "", "")

    assert ("ro" in options_at(mountpoint)) is ("readonly" in words)
    unmounted(mountpoint)


def test_a_list_of_ranges_is_quoted(source: Path, mountpoint: Path, fstab: Path) -> None:
    words = 'map_uid="0:0:1,1000:2000:10",map_gid=0:0:1+1000:2000:10'
    fstab.write_text(f"{source} {mountpoint} fuse.passfs {words} 0 0\n")
    os.chown(source, 2003, 0)

    assert run("mount", "-T", fstab, mountpoint) == (0, "", "")

    assert mountpoint.stat().st_uid == 1003
    unmounted(mountpoint)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["-o", "cahce=auto"], 1, "option 'cahce': is not known"),
        (["-o", "sync"], 1, "option 'sync': is not known"),
        (["-o", "remount"], 1, "option 'remount': is refused"),
    ],
)
def test_mount_has_the_status_and_the_message_of_the_helper(
    source: Path, mountpoint: Path, words: list[str], status: int, message: str
) -> None:
    done = run("mount", "-t", "fuse.passfs", *words, source, mountpoint)

    assert done.status == status
    assert done.err.startswith(f"mount.fuse.passfs: {message}")
    assert mounts_at(mountpoint) == []


def test_a_missing_source_is_a_failure(mountpoint: Path, tmp_path: Path) -> None:
    done = run("mount", "-t", "fuse.passfs", tmp_path / "missing", mountpoint)

    message = f"mount.fuse.passfs: {tmp_path}/missing: No such file or directory\n"
    assert done == (32, "", message)


def test_flags_of_mount_are_understood(source: Path, mountpoint: Path) -> None:
    words = ["-t", "fuse.passfs", "-o", "intr,cache=never", source, mountpoint]

    fake = run("mount", "-sfnv", *words)

    assert fake.status == 0
    assert f"mount.fuse.passfs: {source} mounted on {mountpoint}." in fake.out
    odd = Path(f"{source}-\udcff")  # a byte that is no UTF-8
    odd.mkdir()
    fake = run("mount", "-fv", "-t", "fuse.passfs", odd, mountpoint)
    assert (fake.status, f"{source}-\\udcff mounted on" in fake.out) == (0, True)
    assert mounts_at(mountpoint) == []
    assert run("mount", "-s", *words) == (0, "", "")
    unmounted(mountpoint)


def test_the_helper_refuses_a_wrong_call(source: Path, mountpoint: Path) -> None:
    helper = SBIN / "mount.fuse.passfs"
    for words, message in (
        ([source], "the following arguments are required: directory"),
        ([source, mountpoint, "-t", "fuse.other"], "-t: 'fuse.other' is not accepted; expected"),
        ([source, mountpoint, "-N", "/proc/1/ns/mnt"], "-N is not accepted: enter the mount name"),
        ([source, mountpoint, "-x"], "unrecognized arguments: -x"),
    ):
        done = run(helper, *words)
        assert done.status == 1
        assert f"mount.fuse.passfs: {message}" in done.err
