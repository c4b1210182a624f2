"""Files that lose their name: replaced or removed by others, in the volume or on the host."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools.callers import ROOT
from tests.support.tools.files import outcome

CHANGES = 300
AT_LEAST_S, AT_MOST_S = 2.0, 10.0
# With the fault there are about as many errors as changes. Without it, a thread would have to wait
# for a processor for 50 ms between LOOKUP and OPEN.
TOLERATED = 5
# Processes that sleep are soon given a processor, under any load. Several of them come between
# LOOKUP and OPEN of every other open(2).
PAUSE_S = 100e-6
ON_THE_HOST, IN_THE_VOLUME = 4, 2
BATCH = 40
# An inode of which the kernel was told this long ago may be looked up again (ESTALE).
TOLD_AGO_S = 0.06

every_way_to_hold = pytest.mark.columns(
    "control", "kernel-auto-fresh", "libfuse-auto-fresh", "kernel-auto-handles-mandatory"
)


def replace_on_the_host(directory: Path) -> None:
    """Replace `doc` by a new file now and then, until the process is killed."""
    new = directory / f"new-{os.getpid()}"
    while True:
        new.touch()
        new.rename(directory / "doc")
        time.sleep(PAUSE_S)


def replace_in_the_volume(directory: Path) -> None:
    """Replace `doc` by new files, many in a row, until the process is killed."""
    while True:
        names = [directory / f"new-{os.getpid()}-{number}" for number in range(BATCH)]
        for name in names:
            name.touch()
        for name in names:
            name.rename(directory / "doc")


@every_way_to_hold
@pytest.mark.fault(
    "opening what has lost its name",
    "open(2) fails with ESTALE, with `inode_file_handles=mandatory` also with ENOMEM, while others"
    " replace the file by rename(2)",
)
@pytest.mark.parametrize("replacer", ["host", "volume"])
def test_opening_while_others_replace_the_file(
    directory: Path, beneath: Path, replacer: str
) -> None:
    """A name that always leads to a file can always be opened: rename(2)."""
    replacers: dict[str, list[Callable[[], None]]] = {
        "host": ON_THE_HOST * [lambda: replace_on_the_host(beneath)],
        "volume": IN_THE_VOLUME * [lambda: replace_in_the_volume(directory)],
    }
    (beneath / "doc").touch()
    errors: Counter[object] = Counter()
    changes = last = 0
    start = time.monotonic()
    with contextlib.ExitStack() as running:
        for replace in replacers[replacer]:
            running.enter_context(ROOT.start(replace))
        while errors.total() <= TOLERATED:
            spent_s = time.monotonic() - start
            if spent_s > AT_MOST_S or (spent_s > AT_LEAST_S and changes > CHANGES):
                break
            fd = outcome(os.open, directory / "doc", os.O_RDONLY)
            if not isinstance(fd, int):
                errors[fd] += 1
                continue
            number = os.fstat(fd).st_ino
            os.close(fd)
            changes += number != last
            last = number

    assert errors.total() <= TOLERATED, (errors, changes)
    assert changes > 1


@every_way_to_hold
@pytest.mark.fault(
    "opening what has lost its name",
    "a file that is held by O_PATH and then removed or replaced cannot be opened"
    " through /proc/self/fd (ESTALE)",
)
@pytest.mark.parametrize("how", ["unlinked", "replaced"])
def test_opening_what_is_held_by_o_path(directory: Path, how: str) -> None:
    """A descriptor holds the file, not its name: open(2), O_PATH."""
    assert content_of_held(directory / "held", directory, how) == "content"


@pytest.mark.columns("control", "kernel-auto-fresh", "libfuse-auto-fresh")
@pytest.mark.fault(
    "opening what has lost its name",
    "a file that is held by O_PATH and then removed or replaced cannot be opened"
    " through /proc/self/fd (ESTALE)",
)
@pytest.mark.parametrize("how", ["unlinked", "replaced"])
def test_opening_what_is_held_by_o_path_and_gone_on_the_host(
    directory: Path, beneath: Path, how: str
) -> None:
    """The same if the host takes the name away. A file handle cannot hold such a file."""
    assert content_of_held(directory / "held", beneath, how) == "content"


def content_of_held(path: Path, where: Path, how: str) -> object:
    """Return what a descriptor of *path* leads to once the name in *where* is gone."""
    path.write_text("content")
    held = os.open(path, os.O_PATH)
    try:
        if how == "unlinked":
            (where / path.name).unlink()
        else:
            (where / "other").touch()
            (where / "other").rename(where / path.name)
        time.sleep(TOLD_AGO_S)
        return outcome(Path(f"/proc/self/fd/{held}").read_text)
    finally:
        os.close(held)


Change = tuple[Callable[[Path], object], Callable[[Path], object], object]
BY_PATH: dict[str, Change] = {
    "chmod": (lambda path: path.chmod(0o751), lambda path: path.stat().st_mode & 0o777, 0o751),
    "chown": (lambda path: os.chown(path, 7, 8), lambda path: path.stat().st_uid, 7),
    "truncate": (lambda path: os.truncate(path, 1), lambda path: path.stat().st_size, 1),
    "utime": (lambda path: os.utime(path, (1, 1)), lambda path: path.stat().st_mtime, 1),
    "setxattr": (lambda path: os.setxattr(path, "user.a", b"1"), os.listxattr, ["user.a"]),
    "link": (
        lambda path: os.link(path, path.with_name(f"{path.name}-link")),
        lambda path: path.stat().st_nlink,
        2,
    ),
}
"""By name: a change by path, what of the file shows it, and what must be seen then."""


@pytest.mark.columns(
    "control", "kernel-always-fresh", "libfuse-always-fresh", "kernel-auto-handles-mandatory"
)
@pytest.mark.fault(
    "changes by path",
    "a change by path right after the host has replaced the file is lost, with success"
    " reported; link(2) fails with ENOENT",
    "kernel-always-fresh",
    "libfuse-always-fresh",
)
@pytest.mark.parametrize("name", BY_PATH)
def test_a_change_by_path_after_a_replacement(directory: Path, beneath: Path, name: str) -> None:
    """A change by path reaches the file that has the name now: path_resolution(7).

    With `auto` the kernel would look the name up by itself if the test waits for a processor. The
    descriptor keeps the kernel from dropping the name for want of memory.
    """
    change, look, right = BY_PATH[name]
    (beneath / "file").write_text("old")
    (beneath / "made").write_text("new")
    known = os.open(directory / "file", os.O_PATH)
    try:
        time.sleep(TOLD_AGO_S)
        (beneath / "made").rename(beneath / "file")
        done = outcome(change, directory / "file")
    finally:
        os.close(known)

    assert done is None
    assert look(beneath / "file") == right


@every_way_to_hold
@pytest.mark.parametrize("name", [name for name in BY_PATH if name != "link"])
def test_a_change_of_what_is_held_by_o_path(directory: Path, name: str) -> None:
    """A descriptor leads to its file, for changes as well, once the name is gone: open(2)."""
    change, look, right = BY_PATH[name]
    (directory / "held").write_text("content")
    held = os.open(directory / "held", os.O_PATH)
    try:
        (directory / "held").unlink()
        time.sleep(TOLD_AGO_S)
        path = Path(f"/proc/self/fd/{held}")
        assert outcome(change, path) is None
        assert look(path) == right
    finally:
        os.close(held)


@every_way_to_hold
def test_a_change_by_descriptor_after_a_replacement(directory: Path, beneath: Path) -> None:
    """An open file stays the one that was opened, if another gets its name: open(2)."""
    (directory / "file").write_text("old")
    descriptor = os.open(directory / "file", os.O_RDWR)
    try:
        (beneath / "made").write_text("new")
        (beneath / "made").rename(beneath / "file")
        os.fchmod(descriptor, 0o751)
        os.ftruncate(descriptor, 1)
        os.utime(descriptor, (1, 1))
        os.setxattr(descriptor, "user.a", b"1")
        status = os.fstat(descriptor)
        attributes = os.listxattr(descriptor)
        content = os.pread(descriptor, 10, 0)
    finally:
        os.close(descriptor)

    assert (status.st_mode & 0o777, status.st_size, status.st_mtime) == (0o751, 1, 1)
    assert (attributes, content) == (["user.a"], b"o")
    assert (beneath / "file").read_text() == "new"
    assert os.listxattr(beneath / "file") == []
