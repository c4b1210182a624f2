"""Names for which the kernel has a negative entry, and which the host has created since."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.tools.callers import ROOT, USER, attempt
from tests.support.tools.files import owner, refused
from tests.support.tools.mounted import Mounted, mounted

LIMIT_S = 30.0


@pytest.fixture
def served(base: Path) -> Iterator[Mounted]:
    """A volume that all users may write to, with a negative entry that stays for a day."""
    with mounted(base, {"negative_timeout": "1d"}) as served, served.limited(LIMIT_S):
        served.source.chmod(0o777)
        assert not (served.mountpoint / "name").exists()
        yield served


def create(path: Path, flags: int = 0) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK | flags, 0o666))


def test_a_file_that_the_host_has_made_is_opened_unchanged(served: Mounted) -> None:
    (served.source / "name").write_bytes(b"kept")
    os.chown(served.source / "name", 7, 8)

    create(served.mountpoint / "name")

    assert (served.source / "name").read_bytes() == b"kept"
    assert owner(served.source / "name") == (7, 8)


def test_o_excl_fails_on_a_file_that_the_host_has_made(served: Mounted) -> None:
    (served.source / "name").touch()

    refused(errno.EEXIST, lambda: create(served.mountpoint / "name", os.O_EXCL))


def test_a_file_that_the_host_has_made_is_opened_only_with_permission(served: Mounted) -> None:
    """CREATE needs no right to the file itself, so the worker checks it when it finds one."""
    (served.source / "name").write_bytes(b"secret")
    (served.source / "name").chmod(0o600)

    assert attempt(USER, lambda: create(served.mountpoint / "name", os.O_TRUNC)) == "EACCES"
    assert (served.source / "name").read_bytes() == b"secret"


IN_THE_WAY: dict[str, tuple[Callable[[Path], object], int]] = {
    "a symlink to the outside": (lambda path: path.symlink_to(path.parent.parent / "outside"), 0),
    "a fifo": (os.mkfifo, errno.ENXIO),
    "a device": (
        lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        errno.EACCES,
    ),
    "a directory": (os.mkdir, errno.EISDIR),
}


@pytest.mark.parametrize(("make", "number"), IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_the_worker_opens_only_regular_files(
    served: Mounted, make: Callable[[Path], object], number: int
) -> None:
    """The caller's kernel follows a symlink among the caller's own mounts, and may create there."""
    make(served.source / "name")

    if number:
        refused(number, lambda: create(served.mountpoint / "name"))
    else:
        ROOT.run(lambda: create(served.mountpoint / "name"))
        assert (served.source.parent / "outside").stat().st_size == 0
    assert stat.S_IFMT((served.source / "name").lstat().st_mode) != stat.S_IFREG
