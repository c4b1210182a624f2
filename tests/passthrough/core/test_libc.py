"""The calls without a wrapper in glibc: their arguments, their results, one thread's state."""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from tests.passthrough.core import probe_libc

RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x04, 0x08  # linux/openat2.h
CAP_FSETID = 4
DT_REG, DT_DIR = 8, 4

Result = TypeVar("Result")


def in_a_thread(call: Callable[[], Result]) -> Result:
    """Return the result of *call*, made in a thread that ends with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "below").mkdir()
    (tmp_path / "link").symlink_to("file")
    return tmp_path


def test_openat2_resolves_as_told(directory: Path) -> None:
    top = os.open(directory, os.O_PATH)
    fd = probe_libc.open_beneath(top, b"link", RESOLVE_BENEATH)
    try:
        assert os.path.samestat(os.fstat(fd), (directory / "file").stat())
        assert probe_libc.open_beneath(top, b"link", RESOLVE_NO_SYMLINKS) == -errno.ELOOP
        assert probe_libc.open_beneath(top, b"../x", RESOLVE_BENEATH) == -errno.EXDEV
        assert probe_libc.open_beneath(top, b"absent", 0) == -errno.ENOENT
    finally:
        os.close(fd)
        os.close(top)


def test_getdents64_gives_name_kind_and_number(directory: Path) -> None:
    for number in range(300):  # several calls
        (directory / f"name-{number:03}").touch()
    fd = os.open(directory, os.O_RDONLY)
    found = probe_libc.names(fd)
    os.close(fd)

    assert isinstance(found, dict)
    assert found.keys() - {b".", b".."} == {os.fsencode(path.name) for path in directory.iterdir()}
    assert found[b"file"] == (DT_REG, (directory / "file").stat().st_ino)
    assert found[b"below"] == (DT_DIR, (directory / "below").stat().st_ino)
    assert probe_libc.names(-1) == -errno.EBADF


def test_file_system_ids_are_of_one_thread(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    top = os.open(tmp_path, os.O_PATH)  # the directories above are closed to the caller

    def create() -> tuple[int, int]:
        assert probe_libc.act_as(4_000_000_000, 41_002) == (0, 0)
        os.mkdir("theirs", dir_fd=top)
        return probe_libc.act_as(0, 0)

    assert in_a_thread(create) == (4_000_000_000, 41_002)
    os.mkdir("ours", dir_fd=top)
    os.close(top)
    theirs, ours = (tmp_path / "theirs").stat(), (tmp_path / "ours").stat()
    assert (theirs.st_uid, theirs.st_gid) == (4_000_000_000, 41_002)
    assert (ours.st_uid, ours.st_gid) == (0, 0)


def test_capabilities_and_groups_are_of_one_thread() -> None:
    before = probe_libc.effective()
    groups = os.getgroups()

    def lowered() -> int:
        assert probe_libc.lower(CAP_FSETID) == 0
        assert probe_libc.drop_groups() == 0
        assert os.getgroups() == []
        return probe_libc.effective()

    assert in_a_thread(lowered) == before & ~(1 << CAP_FSETID)
    assert probe_libc.effective() == before
    assert os.getgroups() == groups


@pytest.mark.parametrize("name", ["file", "below", "link"])
def test_both_calls_of_stat_are_as_in_python(directory: Path, name: str) -> None:
    path = directory / name
    os.utime(path, ns=(5, -1_500_000_001), follow_symlinks=False)
    st = path.lstat()

    expected = (st.st_ino, st.st_mode, st.st_mtime_ns)
    assert probe_libc.status(os.fsencode(path)) == (expected, expected)
    assert probe_libc.status(b"/absent/name") == -errno.ENOENT
