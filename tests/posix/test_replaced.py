"""Files without a name: replaced or removed by other processes, in the volume or on the host."""

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
AT_LEAST_S, AT_MOST_S = 2.0, 5.0
# The scheduler prefers processes that have slept, under any load. So several replacements happen
# between LOOKUP and OPEN of every other open(2).
PAUSE_S = 100e-6
ON_THE_HOST, IN_THE_VOLUME = 4, 2
BATCH = 40
# ESTALE makes the kernel repeat a lookup. The worker may answer it for an inode that it sent the
# kernel at least this long ago.
SENT_AGO_S = 0.06

every_way_to_hold = pytest.mark.columns(
    "control", "kernel-auto-fresh", "libfuse-auto-fresh", "kernel-auto-handles-mandatory"
)


def replace_on_the_host(directory: Path) -> None:
    """Replace `doc` by a new file, with a pause after each, until the process is killed."""
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


@pytest.mark.slow
@every_way_to_hold
@pytest.mark.parametrize("replacer", ["host", "volume"])
def test_opening_while_other_processes_replace_the_file(
    directory: Path, beneath: Path, replacer: str
) -> None:
    """A name that exists without interruption can be opened at any time: rename(2)."""
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
        while not errors:
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

    assert not errors, changes
    assert changes > 1


@every_way_to_hold
@pytest.mark.parametrize("how", ["unlinked", "replaced"])
def test_opening_a_removed_file_held_by_o_path(directory: Path, how: str) -> None:
    """A descriptor refers to the file, not to its name: open(2), O_PATH."""
    assert content_of_held(directory / "held", directory, how) == "content"


@pytest.mark.columns("control", "kernel-auto-fresh", "libfuse-auto-fresh")
@pytest.mark.parametrize("how", ["unlinked", "replaced"])
def test_opening_a_file_held_by_o_path_and_removed_on_the_host(
    directory: Path, beneath: Path, how: str
) -> None:
    """A descriptor refers to the file also if the host removes its name.

    The columns leave out `inode_file_handles=mandatory`: a file handle cannot keep such a file.
    """
    assert content_of_held(directory / "held", beneath, how) == "content"


def content_of_held(path: Path, parent: Path, how: str) -> object:
    """Return the content behind an O_PATH descriptor of *path*, or an errno's name.

    The name in *parent* is removed or replaced before the content is read.
    """
    path.write_text("content")
    held = os.open(path, os.O_PATH)
    try:
        if how == "unlinked":
            (parent / path.name).unlink()
        else:
            (parent / "other").touch()
            (parent / "other").rename(parent / path.name)
        time.sleep(SENT_AGO_S)
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
"""Name -> a change by path, a function that reads the changed attribute, its expected value."""


@pytest.mark.columns(
    "control", "kernel-always-fresh", "libfuse-always-fresh", "kernel-auto-handles-mandatory"
)
@pytest.mark.parametrize("name", BY_PATH)
def test_a_change_by_path_after_a_replacement(directory: Path, beneath: Path, name: str) -> None:
    """A change by path reaches the file that has the name now: path_resolution(7).

    With `auto` the entry may expire while the test waits for a processor, and the kernel then sends
    LOOKUP. The descriptor keeps the kernel from dropping the name to free memory.
    """
    change, read, expected = BY_PATH[name]
    (beneath / "file").write_text("old")
    (beneath / "made").write_text("new")
    known = os.open(directory / "file", os.O_PATH)
    try:
        time.sleep(SENT_AGO_S)
        (beneath / "made").rename(beneath / "file")
        done = outcome(change, directory / "file")
    finally:
        os.close(known)

    assert done is None
    assert read(beneath / "file") == expected


@every_way_to_hold
@pytest.mark.parametrize("name", [name for name in BY_PATH if name != "link"])
def test_a_change_of_a_removed_file_held_by_o_path(directory: Path, name: str) -> None:
    """A descriptor refers to its file after the name is gone, also for changes: open(2)."""
    change, read, expected = BY_PATH[name]
    (directory / "held").write_text("content")
    held = os.open(directory / "held", os.O_PATH)
    try:
        (directory / "held").unlink()
        time.sleep(SENT_AGO_S)
        path = Path(f"/proc/self/fd/{held}")
        assert outcome(change, path) is None
        assert read(path) == expected
    finally:
        os.close(held)


@every_way_to_hold
def test_a_change_by_descriptor_after_a_replacement(directory: Path, beneath: Path) -> None:
    """A descriptor refers to its file, even if another file gets the name: open(2)."""
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
