"""Modes, owners, sizes and numbers, as stat and statvfs return them."""

import os
import stat
from pathlib import Path

import pytest

from tests.support.tools.callers import Caller


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_chmod(directory: Path, kind: str) -> None:
    """All twelve mode bits are set, and the type stays: chmod(2)."""
    path = directory / "name"
    path.touch() if kind == "file" else path.mkdir()
    before = stat.S_IFMT(path.stat().st_mode)
    for mode in (0o000, 0o644, 0o4755, 0o2750, 0o1777, 0o7777, 0o700):
        path.chmod(mode)

        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert stat.S_IFMT(path.stat().st_mode) == before


def test_chmod_of_a_descriptor(directory: Path) -> None:
    """Fchmod changes the open file, even after a rename: fchmod(2)."""
    with (directory / "old").open("w") as file:
        (directory / "old").rename(directory / "new")
        os.fchmod(file.fileno(), 0o640)

    assert stat.S_IMODE((directory / "new").stat().st_mode) == 0o640


@pytest.mark.parametrize(("mode", "umask"), [(0o666, 0o022), (0o777, 0o077), (0o640, 0o000)])
def test_umask(directory: Path, caller: Caller, mode: int, umask: int) -> None:
    """A new file has its mode less the umask of the caller: umask(2)."""

    def make() -> None:
        os.close(os.open(directory / "file", os.O_CREAT | os.O_WRONLY, mode))
        os.mkdir(directory / "directory", mode)
        os.mkfifo(directory / "fifo", mode)

    with caller.start(make, umask=umask) as call:
        call.result()

    for name in ("file", "directory", "fifo"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == mode & ~umask


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("uid", "gid", "expected"),
    [
        (1001, 1002, (1001, 1002)),
        (1001, -1, (1001, 20)),
        (-1, 1002, (10, 1002)),
        (-1, -1, (10, 20)),
    ],
    ids=["both", "uid", "gid", "neither"],
)
def test_chown(directory: Path, uid: int, gid: int, expected: tuple[int, int]) -> None:
    """Owner and group are set, each unless it is -1: chown(2)."""
    path = directory / "file"
    path.touch()
    os.chown(path, 10, 20)
    os.chown(path, uid, gid)

    assert (path.stat().st_uid, path.stat().st_gid) == expected


@pytest.mark.privileged
def test_chown_of_a_symlink(directory: Path) -> None:
    """Lchown changes the symlink, chown its target: chown(2)."""
    (directory / "file").touch()
    link = directory / "link"
    link.symlink_to("file")
    os.lchown(link, 1001, 1002)
    os.chown(link, 1003, 1004)

    assert (link.lstat().st_uid, link.lstat().st_gid) == (1001, 1002)
    assert (link.stat().st_uid, link.stat().st_gid) == (1003, 1004)


@pytest.mark.privileged
def test_chown_clears_suid_and_sgid(directory: Path) -> None:
    """A new owner clears the set-id bits, on Linux also if root calls: chown(2)."""
    path = directory / "program"
    path.touch()
    path.chmod(0o6755)
    os.chown(path, 1001, 1002)

    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_blocks(directory: Path) -> None:
    """st_blocks counts allocated units of 512 bytes, without holes: stat(2)."""
    full, sparse = directory / "full", directory / "sparse"
    size = 1 << 20
    with full.open("wb") as file:
        file.write(os.urandom(size))  # random, so that no file system compresses it away
        file.flush()
        os.fsync(file.fileno())
    with sparse.open("wb") as file:
        file.truncate(64 * size)

    assert size <= full.stat().st_blocks * 512 < 2 * size
    assert sparse.stat().st_blocks * 512 < size
    assert full.stat().st_blksize > 0


def test_link_count_of_directories(directory: Path, beneath: Path) -> None:
    """A directory's link count is that of the host's while subdirectories are made: inode(7)."""
    for number in range(3):
        (directory / str(number)).mkdir()
        assert directory.stat().st_nlink == beneath.stat().st_nlink
    (directory / "0").rmdir()

    assert directory.stat().st_nlink == beneath.stat().st_nlink


def test_statvfs(directory: Path, beneath: Path) -> None:
    """The sizes are those of the host's file system: statvfs(3)."""
    shown, real = os.statvfs(directory), os.statvfs(beneath)
    constant = ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax")

    assert [getattr(shown, name) for name in constant] == [getattr(real, name) for name in constant]
    assert shown.f_blocks >= shown.f_bfree >= shown.f_bavail > 0
    assert abs(shown.f_bavail - real.f_bavail) < real.f_blocks // 10


def test_statvfs_of_a_descriptor(directory: Path) -> None:
    """An open file's file system is that of its path: fstatvfs(3)."""
    with (directory / "file").open("w") as file:
        assert os.fstatvfs(file.fileno()).f_blocks == os.statvfs(directory).f_blocks


def test_identity_beneath(directory: Path, beneath: Path) -> None:
    """The inode number is the host's, for a file and for a directory: inode(7)."""
    (directory / "file").touch()
    (directory / "inner").mkdir()

    for name in ("file", "inner", "."):
        assert os.stat(directory / name).st_ino == os.stat(beneath / name).st_ino
