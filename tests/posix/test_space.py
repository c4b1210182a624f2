"""Space of the host's file system: removed files free it, and users cannot take root's reserve."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.tools.callers import ROOT, USER
from tests.support.tools.columns import BY_ID
from tests.support.tools.disks import ext4
from tests.support.tools.files import outcome
from tests.support.tools.mounted import mounted

FREED_S = 10.0
POLL_S = 0.1
FILES = 3
FILE_BYTES = 2 << 20
# A directory of so many names of this length takes 200 blocks and more.
NAMES = 1_000
NAME_BYTES = 200
# Blocks that the journal or a directory may have taken in the meantime.
SLACK_BLOCKS = 64
# Many more pieces than a disk of tests/support/tools/disks.py has free.
PIECE_BYTES, PIECES = 1 << 16, 600
FREE_BLOCKS = 256

Kept = dict[tuple[str, str], int]


def free_blocks(source: Path) -> int:
    """Return the number of free blocks, those reserved for root included."""
    return os.statvfs(source).f_bfree


def make(source: Path) -> None:
    """Make files and a directory that take space."""
    for number in range(FILES):
        (source / str(number)).write_bytes(bytes(FILE_BYTES))
    (source / "directory").mkdir()
    (source / "first").touch()
    for number in range(NAMES):
        os.link(source / "first", source / "directory" / str(number).ljust(NAME_BYTES, "-"))


def keep_busy(mountpoint: Path) -> None:
    """Look up an absent name repeatedly, until the process is killed."""
    while True:
        outcome((mountpoint / "absent").stat)
        time.sleep(POLL_S / 10)


@contextlib.contextmanager
def deleted(base: Path, column: str, load: str) -> Iterator[Callable[[], int]]:
    """Delete files on the host that a user of the volume has listed.

    Yield a function that returns the number of blocks still in use.
    """
    source = base / "source"
    source.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ext4(source))
        top = source
        wanted = BY_ID[column]
        if wanted.session is not None:
            options = {"session": wanted.session, "inode_file_handles": wanted.file_handles}
            served = stack.enter_context(mounted(base, options))
            stack.enter_context(served.limited(60.0))
            top = served.mountpoint
        before = free_blocks(source)
        make(source)
        os.sync()
        assert free_blocks(source) < before - SLACK_BLOCKS
        subprocess.run(["ls", "-lR", top], check=True, stdout=subprocess.DEVNULL, timeout=60)
        if load == "busy":
            stack.enter_context(ROOT.start(lambda: keep_busy(top)))
        for path in source.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield lambda: max(0, before - free_blocks(source) - SLACK_BLOCKS)


CASES = [
    ("control", "idle"),
    ("kernel-auto", "idle"),
    ("kernel-auto", "busy"),
    ("kernel-auto-handles-mandatory", "idle"),
    ("libfuse-auto", "idle"),
    ("libfuse-auto", "busy"),
]


@pytest.fixture(scope="module")
def kept() -> Kept:
    """Return the blocks that each case still uses after FREED_S. All cases wait together."""
    base = Path(tempfile.mkdtemp(prefix="passfs-space-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, base)
        counts = {
            case: stack.enter_context(deleted(base / "-".join(case), *case)) for case in CASES
        }
        deadline = time.monotonic() + FREED_S
        while any(count() for count in counts.values()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return {case: count() for case, count in counts.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("column", "load"), CASES)
def test_the_space_of_files_that_the_host_deletes_is_freed(
    kept: Kept, column: str, load: str
) -> None:
    """The space of a removed file that no process has open is free within 10 s: unlink(2)."""
    assert kept[column, load] == 0


Take = Callable[[Path, int, int], object]
TAKES: dict[str, Take] = {
    "write": lambda _, fd, at: os.pwrite(fd, bytes(PIECE_BYTES), at),
    "fallocate": lambda _, fd, at: os.posix_fallocate(fd, at, PIECE_BYTES),
    "copy": lambda _, fd, at: os.copy_file_range(fd, fd, PIECE_BYTES, 0, at),
    "mkdir": lambda path, _, at: os.mkdir(path.with_name(f"directory-{at}")),
}
"""Name -> a call that takes blocks for a file with one piece, or for a directory beside it."""


def fill(path: Path, take: Take) -> str:
    """Call *take* until it fails; return the errno's name."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        os.pwrite(descriptor, bytes(PIECE_BYTES), 0)
        for number in range(1, PIECES):
            taken = outcome(take, path, descriptor, number * PIECE_BYTES)
            if isinstance(taken, str):
                return taken
    finally:
        os.close(descriptor)
    return "no error"


@pytest.fixture
def nearly_full(directory: Path, beneath: Path) -> Iterator[int]:
    """Leave FREE_BLOCKS to users in *directory*, and yield the number of root's reserved blocks."""
    directory.chmod(0o777)
    status = os.statvfs(beneath)
    with (beneath / "ballast").open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, (status.f_bavail - FREE_BLOCKS) * status.f_bsize)
    yield status.f_bfree - status.f_bavail
    (beneath / "ballast").unlink()
    for path in directory.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    deadline = time.monotonic() + FREED_S
    while free_blocks(beneath) < status.f_bfree - SLACK_BLOCKS:  # FORGET has no answer
        assert time.monotonic() < deadline
        time.sleep(POLL_S / 10)


@pytest.mark.columns(
    *("control-ext4", "kernel-auto-ext4", "kernel-auto-passthrough-off-ext4", "libfuse-auto-ext4")
)
@pytest.mark.parametrize("way", ["write", "fallocate", "copy", "mkdir"])
def test_users_cannot_take_reserved_blocks(
    nearly_full: int, directory: Path, beneath: Path, way: str
) -> None:
    """A user's call fails with ENOSPC if only reserved blocks are left: ext4(5), resuid."""
    error = USER.run(lambda: fill(directory / "fill", TAKES[way]))

    assert error == "ENOSPC"
    assert free_blocks(beneath) >= nearly_full - SLACK_BLOCKS
