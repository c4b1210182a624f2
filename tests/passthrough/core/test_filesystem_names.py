"""The operations on names: find, create, link, remove, rename."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.inodes import ROOT
from passthrough.identity.attributes import Entry
from passthrough.linux import syscalls
from tests.support.tools.direct import CALLER, fails, number_of
from tests.support.tools.options import effective


def test_lookup_tells_what_the_host_says_and_for_how_long(source: Path) -> None:
    (source / "file").write_bytes(b"12345")
    (source / "link").symlink_to("file")
    (source / "dir").mkdir()
    config = effective(entry_timeout=1, attr_timeout=2, dir_entry_timeout=3)
    fs = PassthroughFs(config, os.open(source, os.O_PATH))

    for name in ("file", "link", "dir"):
        entry = fs.lookup(ROOT, name.encode())
        assert entry.stat == (source / name).lstat()
        assert entry.inode_number == (source / name).lstat().st_ino
        assert (entry.entry_timeout, entry.attr_timeout) == (3 if name == "dir" else 1, 2)
        assert fs.getattr(entry.inode_number).timeout == 2
    fs.close()


def test_lookup_below_a_file_or_a_symlink_fails(fs: PassthroughFs, source: Path) -> None:
    """A symlink to a directory is no directory: the caller's kernel follows it, not the worker."""
    (source / "dir").mkdir()
    (source / "dir" / "name").touch()
    (source / "file").touch()
    (source / "link").symlink_to("dir")

    for name in (b"file", b"link"):
        number = number_of(fs, name)
        fails(errno.ENOTDIR, lambda number=number: fs.lookup(number, b"name"))  # type: ignore[misc]


def test_an_inode_outlives_its_name(fs: PassthroughFs, source: Path) -> None:
    (source / "file").write_bytes(b"content")
    number = number_of(fs, b"file")
    (source / "file").rename(source / "other")
    assert fs.getattr(number).stat.st_size == 7
    (source / "other").unlink()

    assert fs.getattr(number).stat.st_nlink == 0


CREATING: dict[str, Callable[[PassthroughFs, bytes], Entry]] = {
    "mknod": lambda fs, name: fs.mknod(ROOT, name, stat.S_IFREG | 0o600, 0, CALLER),
    "mkdir": lambda fs, name: fs.mkdir(ROOT, name, 0o700, CALLER),
    "symlink": lambda fs, name: fs.symlink(ROOT, name, b"target", CALLER),
    "create": lambda fs, name: fs.create(ROOT, name, 0o600, os.O_RDWR, CALLER)[0],
}


@pytest.mark.parametrize("operation", CREATING)
def test_creation_in_the_place_of_something_fails(
    fs: PassthroughFs, source: Path, operation: str
) -> None:
    """With create(2) the kernel looks the name up anew, and checks permissions as on any open."""
    (source / "file").write_bytes(b"kept")
    (source / "new").symlink_to("file")

    fails(
        errno.ESTALE if operation == "create" else errno.EEXIST,
        lambda: CREATING[operation](fs, b"new"),
    )

    assert (source / "file").read_bytes() == b"kept"
    assert (source / "new").is_symlink()
    assert len(fs.files) == 0


def test_exclusive_creation_in_the_place_of_something_is_eexist(
    fs: PassthroughFs, source: Path
) -> None:
    (source / "new").touch()

    fails(
        errno.EEXIST,
        lambda: fs.create(ROOT, b"new", 0o600, os.O_RDWR | os.O_EXCL, CALLER),
    )


@pytest.mark.parametrize("mode", [0o700, 0o1777, 0o2755])
def test_the_mode_is_the_one_that_the_callers_umask_left(
    fs: PassthroughFs, source: Path, mode: int
) -> None:
    """The process's own umask is the worker's to clear, and takes nothing away here."""
    before = os.umask(0)
    try:
        fs.mkdir(ROOT, b"dir", mode & 0o1777, CALLER)
        fs.mknod(ROOT, b"node", stat.S_IFREG | mode & 0o777, 0, CALLER)
    finally:
        os.umask(before)

    assert stat.S_IMODE((source / "dir").stat().st_mode) == mode & 0o1777
    assert stat.S_IMODE((source / "node").stat().st_mode) == mode & 0o777


@pytest.fixture
def two_files(source: Path) -> tuple[Path, Path]:
    one, other = source / "one", source / "other"
    one.write_bytes(b"one")
    other.write_bytes(b"other")
    return one, other


def test_rename_into_another_directory(
    fs: PassthroughFs, source: Path, two_files: tuple[Path, Path]
) -> None:
    (source / "dir").mkdir()

    fs.rename(ROOT, b"one", number_of(fs, b"dir"), b"moved", 0, CALLER)

    assert (source / "dir" / "moved").read_bytes() == b"one"
    assert not two_files[0].exists()


def test_rename_noreplace(fs: PassthroughFs, two_files: tuple[Path, Path]) -> None:
    fails(
        errno.EEXIST,
        lambda: fs.rename(ROOT, b"one", ROOT, b"other", syscalls.RENAME_NOREPLACE, CALLER),
    )
    fs.rename(ROOT, b"one", ROOT, b"new", syscalls.RENAME_NOREPLACE, CALLER)

    assert two_files[1].read_bytes() == b"other"
    assert (two_files[0].parent / "new").read_bytes() == b"one"


def test_rename_whiteout(fs: PassthroughFs, two_files: tuple[Path, Path]) -> None:
    fs.rename(ROOT, b"one", ROOT, b"other", syscalls.RENAME_WHITEOUT, CALLER)

    left = two_files[0].lstat()
    assert stat.S_ISCHR(left.st_mode)
    assert (left.st_uid, left.st_gid) == CALLER
    assert two_files[1].read_bytes() == b"one"


@pytest.mark.usefixtures("two_files")
@pytest.mark.parametrize("flags", [8, 1 << 31, syscalls.RENAME_EXCHANGE | 8])
def test_rename_with_a_flag_that_is_not_known(
    fs: PassthroughFs, flags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused without asking the host, whose kernel may know more flags than this program."""
    monkeypatch.delattr(syscalls, "renameat2")

    fails(errno.EINVAL, lambda: fs.rename(ROOT, b"one", ROOT, b"other", flags, CALLER))


def test_dot_is_the_inode_itself(fs: PassthroughFs, source: Path) -> None:
    """Also of a file: who exports the mount looks `.` up to find a file by its number alone."""
    (source / "dir").mkdir()
    (source / "file").touch()
    for names in ((), (b"dir",), (b"file",)):
        number = number_of(fs, *names)
        assert fs.lookup(number, b".").inode_number == number


def test_dot_dot_of_the_root_is_the_root(fs: PassthroughFs) -> None:
    assert fs.lookup(ROOT, b"..").inode_number == ROOT


def test_dot_dot_is_the_parent(fs: PassthroughFs, source: Path) -> None:
    (source / "one" / "two").mkdir(parents=True)
    (source / "file").touch()

    assert fs.lookup(number_of(fs, b"one"), b"..").inode_number == ROOT
    assert fs.lookup(number_of(fs, b"one", b"two"), b"..").inode_number == number_of(fs, b"one")
    fails(errno.ENOTDIR, lambda: fs.lookup(number_of(fs, b"file"), b".."))


def test_dot_dot_follows_a_directory_that_is_moved_inside(fs: PassthroughFs, source: Path) -> None:
    (source / "one" / "two").mkdir(parents=True)
    number = number_of(fs, b"one", b"two")
    (source / "one" / "two").rename(source / "moved")

    assert fs.lookup(number, b"..").inode_number == ROOT


@pytest.mark.parametrize("beside", ["outside", "source and more"])
def test_dot_dot_does_not_leave_the_source_with_a_directory(
    fs: PassthroughFs, source: Path, beside: str
) -> None:
    """Whoever holds a directory that the host has moved away must not climb about up there."""
    outside = source.parent / beside
    outside.mkdir()
    (source / "one" / "two").mkdir(parents=True)
    one, two = number_of(fs, b"one"), number_of(fs, b"one", b"two")
    (source / "one").rename(outside / "one")

    fails(errno.ESTALE, lambda: fs.lookup(one, b".."))
    fails(errno.ESTALE, lambda: fs.lookup(two, b".."))
    assert len(fs.inodes) == 3


def test_dot_dot_of_a_directory_that_is_gone_is_stale(fs: PassthroughFs, source: Path) -> None:
    (source / "one" / "two").mkdir(parents=True)
    number = number_of(fs, b"one", b"two")
    (source / "one" / "two").rmdir()

    fails(errno.ESTALE, lambda: fs.lookup(number, b".."))
    (source / "one" / "two (deleted)").mkdir()  # as proc_pid_fd(5) shows it
    fails(errno.ESTALE, lambda: fs.lookup(number, b".."))


def test_dot_dot_never_goes_through_a_symlink(fs: PassthroughFs, source: Path) -> None:
    """The way to a directory may be swapped between two looks at it."""
    (source / "one" / "two" / "three").mkdir(parents=True)
    number = number_of(fs, b"one", b"two", b"three")
    place = source / "one"
    real = os.readlink

    def swapped(path: bytes, **kwargs: int) -> bytes:
        found = real(path, **kwargs)
        if found.endswith(b"/three"):
            place.rename(source.parent / "outside")
            place.symlink_to(source.parent / "outside")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "readlink", swapped)
        fails(errno.ESTALE, lambda: fs.lookup(number, b".."))
