"""Links: hard links are names of one file, symbolic links contain a path that is followed."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.support.tools.files import MAKERS, refused

SYMLINKS_MAX = 40


def test_hard_links_are_one_file(directory: Path) -> None:
    """Both names are the same inode with the same content and st_nlink: link(2)."""
    first, second = directory / "first", directory / "second"
    first.write_text("one")
    assert first.stat().st_nlink == 1
    os.link(first, second)
    second.write_text("two")
    second.chmod(0o600)

    assert first.read_text() == "two"
    assert first.stat() == second.stat()
    assert first.stat().st_nlink == 2
    first.unlink()
    assert second.stat().st_nlink == 1
    assert second.read_text() == "two"


def test_hard_link_in_another_directory(directory: Path) -> None:
    """The same file is the same inode through any name in any directory: link(2)."""
    (directory / "one").mkdir()
    (directory / "two").mkdir()
    (directory / "one" / "name").touch()
    os.link(directory / "one" / "name", directory / "two" / "name")

    assert (directory / "one/name").samefile(directory / "two/name")


@pytest.mark.parametrize("kind", ["symlink", "fifo"])
def test_hard_link_to_special(directory: Path, kind: str) -> None:
    """A hard link to a symlink or a fifo neither follows nor opens it: link(2)."""
    MAKERS[kind](directory / "first")
    os.link(directory / "first", directory / "second", follow_symlinks=False)

    assert (directory / "first").lstat() == (directory / "second").lstat()
    assert (directory / "second").lstat().st_nlink == 2


def test_symlink_reads_back(directory: Path) -> None:
    """The target is any non-empty bytes, unchanged; st_size is their number: symlink(7)."""
    for number, target in enumerate([b"x", b"../\xff\n", b"/" + b"t/" * 2000]):
        path = os.fsencode(directory / str(number))
        os.symlink(target, path)

        assert os.readlink(path) == target
        assert os.lstat(path).st_size == len(target)


def test_dangling_symlink(directory: Path) -> None:
    """A symlink may exist without its target, and O_CREAT makes the target: open(2)."""
    link = directory / "link"
    link.symlink_to("target")
    assert stat.S_ISLNK(link.lstat().st_mode)
    refused(errno.ENOENT, link.stat)
    refused(errno.ENOENT, lambda: os.open(link, os.O_RDONLY))
    refused(errno.EEXIST, lambda: os.open(link, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    link.write_text("through the link")

    assert (directory / "target").read_text() == "through the link"
    assert link.is_symlink()


def test_symlinks_resolve(directory: Path) -> None:
    """Absolute and relative targets, and symlinks in the middle, are followed: symlink(7)."""
    (directory / "real").mkdir()
    (directory / "real" / "file").write_text("found")
    (directory / "absolute").symlink_to(directory / "real")
    (directory / "real" / "up").symlink_to("../absolute")

    assert (directory / "absolute" / "up" / "up" / "file").read_text() == "found"


def test_symlink_chain(directory: Path) -> None:
    """Forty symlinks are followed, one more is ELOOP: path_resolution(7)."""
    (directory / "0").write_text("the end")
    for number in range(1, SYMLINKS_MAX + 2):
        (directory / str(number)).symlink_to(str(number - 1))

    assert (directory / str(SYMLINKS_MAX)).read_text() == "the end"
    refused(errno.ELOOP, (directory / str(SYMLINKS_MAX + 1)).stat)


@pytest.mark.libfuse_lacks("O_TMPFILE", "EOPNOTSUPP")
def test_a_nameless_file_gets_a_name(directory: Path) -> None:
    """A file made with O_TMPFILE has no name until it is linked: open(2)."""
    nameless = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    parent = os.open(directory, os.O_PATH)
    try:
        os.write(nameless, b"nameless")
        assert os.listdir(directory) == []
        # Without dst_dir_fd Python calls link(2), which does not follow.
        os.link(f"/proc/self/fd/{nameless}", "name", dst_dir_fd=parent, follow_symlinks=True)
    finally:
        os.close(nameless)
        os.close(parent)

    assert (directory / "name").read_bytes() == b"nameless"
