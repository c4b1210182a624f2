"""Times: set to the nanosecond, and updated by each change."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TICK_LIMIT_S = 5.0


SECOND_NS = 1_000_000_000


def wait_for_tick(directory: Path) -> None:
    """Wait until the clock of the file system has advanced.

    The clock has steps of some milliseconds, and two changes within one step have the same time.
    """
    probe = directory / "clock"
    probe.touch()
    before = probe.stat().st_ctime_ns
    deadline = time.monotonic() + TICK_LIMIT_S
    while probe.stat().st_ctime_ns <= before:
        assert time.monotonic() < deadline, "the file system's clock stands still"
        probe.chmod(0o600)
    probe.unlink()


TIMES_NS = [
    (1, 999_999_999),
    (1_700_000_000_123_456_789, 1_600_000_000_987_654_321),
    (-2 * SECOND_NS + 5, -SECOND_NS // 2),
    (-1_073_741_823, -1_073_741_822),  # UTIME_NOW and UTIME_OMIT, if they were nanoseconds
    (4_102_444_800 * SECOND_NS + 1, 4_102_444_800 * SECOND_NS + 2),  # beyond 2038
]


@pytest.mark.parametrize("kind", ["file", "descriptor", "directory", "symlink", "fifo"])
def test_times_are_set_exactly(directory: Path, kind: str) -> None:
    """Times are kept to the nanosecond, for any type, without opening it: utimensat(2)."""
    path = directory / "name"
    if kind == "directory":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.touch()

    for times in TIMES_NS:
        if kind == "descriptor":
            with path.open("r+") as file:
                os.utime(file.fileno(), ns=times)
        else:
            os.utime(path, ns=times, follow_symlinks=False)
        assert (path.lstat().st_atime_ns, path.lstat().st_mtime_ns) == times


@pytest.mark.parametrize(("option", "kept"), [("-a", "st_mtime_ns"), ("-m", "st_atime_ns")])
def test_one_time_is_omitted(directory: Path, option: str, kept: str) -> None:
    """Touch sets one time, and UTIME_OMIT keeps the other time: utimensat(2)."""
    path = directory / "file"
    path.touch()
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    before = path.stat()
    other = "st_atime_ns" if kept == "st_mtime_ns" else "st_mtime_ns"
    subprocess.run(["touch", option, "-d", "@77.000000777", path], check=True, timeout=60)

    assert getattr(path.stat(), kept) == getattr(before, kept)
    assert getattr(path.stat(), other) == 77_000_000_777


@pytest.mark.parametrize("option", ["-a", "-m"])
def test_one_time_is_now(directory: Path, option: str) -> None:
    """UTIME_NOW sets one time to now, UTIME_OMIT keeps the other time: utimensat(2)."""
    path = directory / "file"
    path.touch()
    os.utime(path, ns=(SECOND_NS, SECOND_NS))
    earliest = time.time_ns() - SECOND_NS  # the file system's clock lags by its step
    subprocess.run(["touch", option, path], check=True, timeout=60)
    latest = time.time_ns()

    status = path.stat()
    moved, kept = status.st_atime_ns, status.st_mtime_ns
    if option == "-m":
        moved, kept = kept, moved
    assert earliest <= moved <= latest
    assert kept == SECOND_NS


def test_times_without_a_value_are_now(directory: Path) -> None:
    """Utime without times sets both to the same current time: utimensat(2)."""
    path = directory / "file"
    path.touch()
    os.utime(path, ns=(SECOND_NS, SECOND_NS))
    earliest = time.time_ns() - SECOND_NS
    os.utime(path)

    assert path.stat().st_atime_ns == path.stat().st_mtime_ns
    assert earliest <= path.stat().st_mtime_ns <= time.time_ns()


def append(path: Path) -> None:
    """Append one byte."""
    with path.open("ab") as file:
        file.write(b"x")


CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "write": (append, {"st_mtime_ns", "st_ctime_ns"}),
    "truncate": (lambda path: os.truncate(path, 1), {"st_mtime_ns", "st_ctime_ns"}),
    "open truncating": (lambda path: path.write_bytes(b""), {"st_mtime_ns", "st_ctime_ns"}),
    "chmod": (lambda path: path.chmod(0o600), {"st_ctime_ns"}),
    "chown": (lambda path: os.chown(path, -1, os.getegid()), {"st_ctime_ns"}),
    "link": (lambda path: os.link(path, path.with_name("link")), {"st_ctime_ns"}),
    "unlink of a link": (lambda path: path.with_name("other").unlink(), {"st_ctime_ns"}),
    "set times": (lambda path: os.utime(path, ns=(1, SECOND_NS)), {"st_ctime_ns"}),
    "setxattr": (lambda path: os.setxattr(path, "user.x", b"y"), {"st_ctime_ns"}),
}


@pytest.mark.parametrize(("change", "moving"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_moves_the_times(
    directory: Path, change: Callable[[Path], object], moving: set[str]
) -> None:
    """A change of content updates mtime and ctime, a change of attributes ctime alone: inode(7)."""
    path = directory / "file"
    path.write_bytes(b"content")
    os.link(path, directory / "other")
    os.utime(path, ns=(SECOND_NS, SECOND_NS))
    before = path.stat()
    wait_for_tick(directory)
    change(path)

    after = path.stat()
    moved = {
        name
        for name in ("st_mtime_ns", "st_ctime_ns")
        if getattr(after, name) > getattr(before, name)
    }
    assert moved == moving


ENTRY_CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda path: (path / "new").touch(),
    "mkdir": lambda path: (path / "new").mkdir(),
    "symlink": lambda path: (path / "new").symlink_to("x"),
    "link": lambda path: (path / "new").hardlink_to(path / "file"),
    "mkfifo": lambda path: os.mkfifo(path / "new"),
    "unlink": lambda path: (path / "file").unlink(),
    "rmdir": lambda path: (path / "directory").rmdir(),
    "rename": lambda path: (path / "file").rename(path / "new"),
    "rename away": lambda path: (path / "file").rename(path.parent / "new"),
}


@pytest.mark.parametrize("change", ENTRY_CHANGES.values(), ids=ENTRY_CHANGES.keys())
def test_a_change_of_entries_moves_the_times(
    directory: Path, change: Callable[[Path], object]
) -> None:
    """Making, removing and renaming an entry update the directory's mtime and ctime: inode(7)."""
    inner = directory / "inner"
    (inner / "directory").mkdir(parents=True)
    (inner / "file").touch()
    before = inner.stat()
    wait_for_tick(directory)
    change(inner)

    assert inner.stat().st_mtime_ns > before.st_mtime_ns
    assert inner.stat().st_ctime_ns > before.st_ctime_ns


def test_reading_moves_atime(directory: Path) -> None:
    """A read updates an atime older than mtime, unless the mount has noatime: mount(8)."""
    path = directory / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(SECOND_NS, 2 * SECOND_NS))
    assert path.read_bytes() == b"content"

    moved = path.stat().st_atime_ns > 2 * SECOND_NS
    assert moved == (not os.statvfs(path).f_flag & os.ST_NOATIME)
