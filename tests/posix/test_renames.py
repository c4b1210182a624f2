"""Renaming: moved and replaced files, and the flags of renameat2(2)."""

import errno
import os
import stat
from pathlib import Path

import pytest

from passthrough.linux.syscalls import RENAME_NOREPLACE
from tests.support.tools.callers import Caller
from tests.support.tools.files import refused, rename_with
from tests.support.tools.host_calls import RENAME_EXCHANGE, RENAME_WHITEOUT


def test_rename_replaces(directory: Path) -> None:
    """The new name leads to the renamed file, and the replaced file has no name: rename(2)."""
    old, new = directory / "old", directory / "new"
    old.write_text("moved")
    new.write_text("replaced")
    inode = old.stat().st_ino
    with new.open() as replaced:
        old.rename(new)

        assert os.fstat(replaced.fileno()).st_nlink == 0
        assert replaced.read() == "replaced"
    assert os.listdir(directory) == ["new"]
    assert new.stat().st_ino == inode
    assert new.read_text() == "moved"
    refused(errno.ENOENT, old.stat)


def test_rename_of_two_names_of_one_file(directory: Path) -> None:
    """Renaming a name over another name of the same file does nothing: rename(2)."""
    old, new = directory / "old", directory / "new"
    old.touch()
    new.hardlink_to(old)
    old.rename(new)

    assert sorted(os.listdir(directory)) == ["new", "old"]


def test_rename_over_empty_directory(directory: Path) -> None:
    """A directory may replace an empty directory: rename(2)."""
    old, new = directory / "old", directory / "new"
    (old / "inner").mkdir(parents=True)
    new.mkdir()
    old.rename(new)

    assert os.listdir(new) == ["inner"]
    refused(errno.ENOENT, old.stat)


def test_rename_of_a_tree(directory: Path) -> None:
    """Files below a renamed directory are found under its new name, and its `..` is the new one."""
    deep = directory / "old" / "one" / "two"
    deep.mkdir(parents=True)
    (deep / "file").write_text("content")
    (directory / "parent").mkdir()
    descriptor = os.open(directory / "old", os.O_RDONLY)
    try:
        (directory / "old").rename(directory / "parent" / "new")

        assert (directory / "parent/new/one/two/file").read_text() == "content"
        refused(errno.ENOENT, (directory / "old/one/two/file").stat)
        assert os.listdir(descriptor) == ["one"]
        parent = os.stat("..", dir_fd=descriptor).st_ino
        assert parent == (directory / "parent").stat().st_ino
    finally:
        os.close(descriptor)


def test_rename_of_an_open_file(directory: Path) -> None:
    """Open descriptors are not affected by a rename: rename(2)."""
    with (directory / "old").open("w+") as opened:
        opened.write("before ")
        opened.flush()
        (directory / "old").rename(directory / "new")
        opened.write("after")
        opened.flush()

        assert os.fstat(opened.fileno()).st_ino == (directory / "new").stat().st_ino
    assert (directory / "new").read_text() == "before after"


def test_rename_noreplace_to_a_free_name(directory: Path) -> None:
    """RENAME_NOREPLACE renames when the new name is free: rename(2)."""
    (directory / "old").write_text("moved")
    rename_with(RENAME_NOREPLACE, directory / "old", directory / "new")

    assert (directory / "new").read_text() == "moved"
    refused(errno.ENOENT, (directory / "old").stat)


def test_rename_exchange(directory: Path) -> None:
    """RENAME_EXCHANGE swaps two names, also of a file and a directory: rename(2)."""
    (directory / "one").write_text("file")
    (directory / "two" / "inner").mkdir(parents=True)
    rename_with(RENAME_EXCHANGE, directory / "one", directory / "two")

    assert os.listdir(directory / "one") == ["inner"]
    assert (directory / "two").read_text() == "file"


@pytest.mark.privileged
def test_rename_whiteout(directory: Path, caller: Caller) -> None:
    """RENAME_WHITEOUT leaves a device 0:0 of the caller's under the old name: rename(2)."""
    (directory / "old").write_text("moved")
    rename_with(RENAME_WHITEOUT, directory / "old", directory / "new")

    left = (directory / "old").stat()
    assert stat.S_ISCHR(left.st_mode)
    assert left.st_rdev == 0
    assert (left.st_uid, left.st_gid) == (caller.uid, caller.gid)
    assert (directory / "new").read_text() == "moved"
