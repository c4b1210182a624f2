"""Option submounts: a mount below the source is part of the volume, or an empty directory."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.inodes import ROOT
from passthrough.identity.attributes import Changes
from passthrough.linux import filecalls, syscalls
from passthrough.options.choices import Submounts
from tests.support.tools.direct import CALLER, listing, number_of
from tests.support.tools.mounted import mounted
from tests.support.tools.mounts import MS_BIND
from tests.support.tools.options import effective

LIMIT_S = 60.0


def below(source: Path) -> None:
    """Mount a tmpfs, a directory of the source and a single file below *source*."""
    for name in ("disk", "same", "plain"):
        (source / name).mkdir()
    (source / "plain/file").write_text("same")
    (source / "alone").touch()
    syscalls.mount(b"none", os.fsencode(source / "disk"), b"tmpfs", 0, b"")
    (source / "disk/file").write_text("disk")
    (source / "disk/directory").mkdir()
    syscalls.mount(os.fsencode(source / "plain"), os.fsencode(source / "same"), b"", MS_BIND, b"")
    syscalls.mount(
        os.fsencode(source / "plain/file"), os.fsencode(source / "alone"), b"", MS_BIND, b""
    )


def names(fs: PassthroughFs, number: int) -> list[bytes]:
    """List a directory without lookups."""
    handle = fs.opendir(number)
    try:
        return [record.name for record in fs.readdir(handle, 0)]
    finally:
        fs.releasedir(handle)


def take_away(source: Path) -> None:
    for name in ("disk", "same", "alone"):
        syscalls.umount2(os.fsencode(source / name), syscalls.MNT_DETACH)


@pytest.fixture
def mounts(source: Path) -> Iterator[Path]:
    below(source)
    yield source
    take_away(source)


@pytest.fixture
def hiding(mounts: Path) -> Iterator[PassthroughFs]:
    fs = PassthroughFs(effective(submounts=Submounts.HIDE), os.open(mounts, os.O_PATH))
    yield fs
    fs.close()


def test_submounts_are_crossed_unless_hidden(mounts: Path) -> None:
    fs = PassthroughFs(effective(), os.open(mounts, os.O_PATH))
    numbers = {number_of(fs, *path) for path in ((b"disk", b"file"), (b"same", b"file"))}
    numbers |= {number_of(fs, b"plain", b"file"), number_of(fs, b"alone")}
    assert len(numbers) == 4
    fs.close()


@pytest.mark.parametrize("name", [b"disk", b"same"])
def test_a_hidden_submount_is_an_empty_directory(hiding: PassthroughFs, name: bytes) -> None:
    number = number_of(hiding, name)
    assert stat.S_ISDIR(hiding.getattr(number).stat.st_mode)
    assert set(listing(hiding, number)) == {b".", b".."}
    assert set(names(hiding, number)) == {b".", b".."}
    for inside in (b"file", b"directory", b"nothing"):
        with pytest.raises(FileNotFoundError):
            hiding.lookup(number, inside)


def test_a_file_that_is_mounted_on_another_is_refused(
    hiding: PassthroughFs, caplog: pytest.LogCaptureFixture
) -> None:
    """A file cannot appear as an empty directory, and the file beneath is out of reach."""
    with pytest.raises(OSError, match="cross-device") as refusal:
        hiding.lookup(ROOT, b"alone")
    assert refusal.value.errno == errno.EXDEV
    caplog.clear()


CHANGES: list[Callable[[PassthroughFs, int], object]] = [
    lambda fs, number: fs.mknod(number, b"new", stat.S_IFREG | 0o600, 0, CALLER),
    lambda fs, number: fs.mkdir(number, b"new", 0o700, CALLER),
    lambda fs, number: fs.symlink(number, b"new", b"target", CALLER),
    lambda fs, number: fs.create(number, b"new", 0o600, os.O_RDWR, CALLER),
    lambda fs, number: fs.tmpfile(number, 0o600, os.O_RDWR, CALLER),
    lambda fs, number: fs.ioctl(
        fs.opendir(number), filecalls.FS_IOC_SETFLAGS, bytes(4), directory=True
    ),
    lambda fs, number: fs.link(number_of(fs, b"plain", b"file"), number, b"new"),
    lambda fs, number: fs.unlink(number, b"file"),
    lambda fs, number: fs.rmdir(number, b"directory"),
    lambda fs, number: fs.rename(number, b"file", ROOT, b"new", 0, CALLER),
    lambda fs, number: fs.rename(number_of(fs, b"plain"), b"file", number, b"new", 0, CALLER),
    lambda fs, number: fs.setattr(number, Changes(mode=0o777)),
    lambda fs, number: fs.setxattr(number, b"user.a", b"b"),
    lambda fs, number: fs.removexattr(number, b"user.a"),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", [b"disk", b"same"])
def test_nothing_is_changed_in_a_hidden_submount(
    hiding: PassthroughFs, mounts: Path, name: bytes, change: Callable[[PassthroughFs, int], object]
) -> None:
    number = number_of(hiding, name)
    with pytest.raises(OSError, match="Read-only") as refusal:
        change(hiding, number)
    assert refusal.value.errno == errno.EROFS
    assert (mounts / "disk/file").read_text() == "disk"
    assert (mounts / "plain/file").read_text() == "same"


def test_a_hidden_submount_is_not_removed(hiding: PassthroughFs, mounts: Path) -> None:
    with pytest.raises(OSError, match="busy"):
        hiding.rmdir(ROOT, b"disk")
    assert (mounts / "disk/file").read_text() == "disk"


@pytest.mark.parametrize("session", ["libfuse", "kernel"])
def test_users_of_a_mount_see_empty_directories(tmp_path: Path, session: str) -> None:
    """A worker in its sandbox serves the mount."""
    source = tmp_path / "source"
    source.mkdir()
    below(source)
    try:
        with (
            mounted(tmp_path, {"submounts": "hide", "session": session}) as served,
            served.limited(LIMIT_S),
        ):
            assert sorted(walk(served.mountpoint)) == ["disk", "plain", "plain/file", "same"]
            with pytest.raises(OSError, match="Read-only"):
                (served.mountpoint / "disk/new").touch()
            assert "'alone' is left out of a listing: Invalid cross-device" in served.logged()
    finally:
        take_away(source)


def walk(top: Path) -> list[str]:
    return [
        os.path.relpath(os.path.join(directory, name), top)
        for directory, names, files in os.walk(top)
        for name in (*names, *files)
    ]
