"""Names: making and removing files of each type, and the errno of each refusal."""

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.linux.syscalls import RENAME_NOREPLACE
from tests.support.tools.files import MAKERS, refused, rename_with
from tests.support.tools.host_calls import RENAME_EXCHANGE

NAME_MAX_BYTES = 255


PATH_MAX_BYTES = 4096


make_anything = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@make_anything
def test_a_removed_name_is_gone(directory: Path, make: Callable[[Path], None]) -> None:
    """The name is removed, and looking it up fails with ENOENT: unlink(2), rmdir(2)."""
    path = directory / "name"
    refused(errno.ENOENT, path.lstat)
    make(path)
    assert "name" in os.listdir(directory)
    path.rmdir() if path.is_dir() else path.unlink()

    assert "name" not in os.listdir(directory)
    refused(errno.ENOENT, path.lstat)
    refused(errno.ENOENT, path.unlink)


@make_anything
def test_a_taken_name_is_refused(directory: Path, make: Callable[[Path], None]) -> None:
    """An existing name is never replaced by a creating call, EEXIST: mkdir(2), link(2), open(2)."""
    path = directory / "name"
    path.write_text("kept")
    refused(errno.EEXIST, lambda: make(path))

    assert path.read_text() == "kept"


@make_anything
def test_the_longest_name(directory: Path, make: Callable[[Path], None]) -> None:
    """A name has up to 255 bytes, a longer one is ENAMETOOLONG: path_resolution(7)."""
    longest = "n" * NAME_MAX_BYTES
    make(directory / longest)
    assert longest in os.listdir(directory)

    refused(errno.ENAMETOOLONG, lambda: make(directory / (longest + "n")))
    refused(errno.ENAMETOOLONG, (directory / (longest + "n")).lstat)


def test_the_longest_name_counts_bytes(directory: Path) -> None:
    """The limit of a name counts bytes, not characters: path_resolution(7)."""
    name = "é" * (NAME_MAX_BYTES // 2) + "e"
    (directory / name).touch()
    assert os.listdir(directory) == [name]

    refused(errno.ENAMETOOLONG, (directory / (name + "e")).touch)


def test_the_longest_path(directory: Path) -> None:
    """A path of 4096 bytes or more is ENAMETOOLONG: path_resolution(7)."""
    refused(errno.ENAMETOOLONG, lambda: os.stat(f"{directory}/" + "./" * (PATH_MAX_BYTES // 2)))


@pytest.mark.parametrize(
    "name",
    [
        b"\xff\xfe\x80",
        b"\xc3",
        b"new\nline",
        b" ",
        b"\x01\x7f",
        b"-rf",
        b"...",
        b"%s$(x)`'\"",
        b"\\",
    ],
)
def test_names_are_bytes(directory: Path, name: bytes) -> None:
    """A name is any bytes but NUL and slash: path_resolution(7)."""
    path = os.path.join(os.fsencode(directory), name)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    os.link(path, path + b"2")
    os.rename(path, path + b"3")

    assert sorted(os.listdir(os.fsencode(directory))) == [name + b"2", name + b"3"]
    assert os.lstat(path + b"2").st_nlink == 2


def test_dot_and_dot_dot(directory: Path) -> None:
    """`.` is the directory itself and `..` its parent: path_resolution(7)."""
    inner = directory / "inner"
    inner.mkdir()

    assert os.stat(f"{inner}/.").st_ino == inner.stat().st_ino
    assert os.stat(f"{inner}/..").st_ino == directory.stat().st_ino


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (lambda path: os.mkdir(f"{path}/inner/."), errno.EEXIST),
        (lambda path: os.mkdir(f"{path}/inner/.."), errno.EEXIST),
        (lambda path: os.rmdir(f"{path}/inner/."), errno.EINVAL),
        (lambda path: os.rmdir(f"{path}/inner/.."), errno.ENOTEMPTY),
        (lambda path: os.unlink(f"{path}/inner/."), errno.EISDIR),
        (lambda path: os.rename(f"{path}/inner/.", path / "new"), errno.EBUSY),
    ],
    ids=["mkdir .", "mkdir ..", "rmdir .", "rmdir ..", "unlink .", "rename ."],
)
def test_dot_names_cannot_be_changed(
    directory: Path, call: Callable[[Path], None], number: int
) -> None:
    """`.` and `..` can be neither made, removed nor renamed: rmdir(2), rename(2)."""
    (directory / "inner").mkdir()
    refused(number, lambda: call(directory))


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (lambda path: os.rmdir(path / "full"), errno.ENOTEMPTY),
        (lambda path: os.rmdir(path / "file"), errno.ENOTDIR),
        (lambda path: os.rmdir(path / "link to full"), errno.ENOTDIR),
        (lambda path: os.unlink(path / "full"), errno.EISDIR),
        (lambda path: os.stat(path / "file/below"), errno.ENOTDIR),
        (lambda path: os.stat(f"{path}/file/"), errno.ENOTDIR),
        (lambda path: os.mkdir(path / "file/below"), errno.ENOTDIR),
        (lambda path: os.mkdir(path / "absent/below"), errno.ENOENT),
        (lambda path: os.open(path / "absent", os.O_RDONLY), errno.ENOENT),
        (lambda path: os.open(path / "file", os.O_RDONLY | os.O_DIRECTORY), errno.ENOTDIR),
        (lambda path: os.open(path / "full", os.O_WRONLY), errno.EISDIR),
        (lambda path: os.open(path / "full", os.O_RDONLY | os.O_CREAT), errno.EISDIR),
        (lambda path: os.open(path / "link to file", os.O_NOFOLLOW), errno.ELOOP),
        (lambda path: os.open(path / "link to itself", os.O_RDONLY), errno.ELOOP),
        (lambda path: os.readlink(path / "file"), errno.EINVAL),
        (lambda path: os.link(path / "full", path / "new"), errno.EPERM),
        (lambda path: os.link(path / "absent", path / "new"), errno.ENOENT),
        (lambda path: os.rename(path / "absent", path / "new"), errno.ENOENT),
        (lambda path: os.rename(path / "empty", path / "full"), errno.ENOTEMPTY),
        (lambda path: os.rename(path / "empty", path / "file"), errno.ENOTDIR),
        (lambda path: os.rename(path / "file", path / "empty"), errno.EISDIR),
        (lambda path: os.rename(path / "full", path / "full/below"), errno.EINVAL),
        (lambda path: rename_with(RENAME_NOREPLACE, path / "file", path / "full"), errno.EEXIST),
        (lambda path: rename_with(RENAME_EXCHANGE, path / "file", path / "new"), errno.ENOENT),
        (
            lambda path: rename_with(
                RENAME_EXCHANGE | RENAME_NOREPLACE, path / "file", path / "full"
            ),
            errno.EINVAL,
        ),
    ],
    ids=[
        *("rmdir full", "rmdir file", "rmdir symlink", "unlink directory"),
        *("lookup below file", "file with slash", "mkdir below file", "mkdir below absent"),
        *("open absent", "open file as directory", "write directory", "create over directory"),
        *("open symlink with nofollow", "open symlink loop", "readlink file"),
        *("link directory", "link absent", "rename absent", "rename over full"),
        *("rename directory over file", "rename file over directory", "rename below itself"),
        *("rename noreplace", "exchange with absent", "exchange and noreplace"),
    ],
)
def test_refusals(directory: Path, call: Callable[[Path], object], number: int) -> None:
    """Each wrong call fails with the error of its man page, and changes nothing.

    rmdir(2), unlink(2), open(2), mkdir(2), link(2), readlink(2), rename(2).
    """
    (directory / "empty").mkdir()
    (directory / "full" / "inner").mkdir(parents=True)
    (directory / "file").touch()
    (directory / "link to full").symlink_to("full")
    (directory / "link to file").symlink_to("file")
    (directory / "link to itself").symlink_to("link to itself")
    before = sorted(directory.rglob("*"))
    refused(number, lambda: call(directory))

    assert sorted(directory.rglob("*")) == before


def test_a_reused_name_is_a_new_file(directory: Path) -> None:
    """A file made under a removed name shares nothing with the old file: unlink(2), open(2)."""
    path = directory / "name"
    path.write_text("old content")
    path.chmod(0o600)
    with path.open() as old:
        path.unlink()
        path.write_text("new")

        assert path.stat().st_ino != os.fstat(old.fileno()).st_ino
        assert path.read_text() == "new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert old.read() == "old content"


def test_a_name_changes_its_type(directory: Path) -> None:
    """A name may be a file, then a directory, then a symlink; stat shows each at once."""
    path = directory / "name"
    path.touch()
    assert path.is_file()
    path.unlink()
    path.mkdir()
    assert path.is_dir()
    path.rmdir()
    path.symlink_to("nowhere")

    assert path.is_symlink()


@pytest.mark.parametrize("how", ["file", "directory", "symlink", "fifo", "hard link", "rename"])
def test_an_absent_name_appears(directory: Path, how: str) -> None:
    """A name is found at once when it is made, after a lookup without success."""
    path = directory / "name"
    (directory / "source").touch()
    refused(errno.ENOENT, path.lstat)
    if how == "rename":
        (directory / "source").rename(path)
    else:
        MAKERS[how](path)

    path.lstat()


def test_nothing_is_made_in_a_removed_directory(directory: Path) -> None:
    """Creating in a removed directory that is still open fails: ENOENT, open(2), mkdir(2)."""
    gone = directory / "gone"
    gone.mkdir()
    descriptor = os.open(gone, os.O_RDONLY)
    try:
        gone.rmdir()
        refused(errno.ENOENT, lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
        refused(errno.ENOENT, lambda: os.mkdir("x", dir_fd=descriptor))

        assert os.fstat(descriptor).st_nlink == 0
    finally:
        os.close(descriptor)


def test_a_deep_tree(directory: Path) -> None:
    """Directories may nest 100 levels deep, and `rm -r` removes them."""
    path = directory
    depth = 100
    for _ in range(depth):
        path = path / "d"
        path.mkdir()
    (path / "file").write_text("deep")

    assert (path / "file").read_text() == "deep"
    removed = subprocess.run(["rm", "-r", directory / "d"], check=False, timeout=60)
    assert removed.returncode == 0
    assert os.listdir(directory) == []
