"""Listings: complete, stable while names come and go, and true about each entry."""

import itertools
import os
import stat
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.support.tools.callers import Caller, together
from tests.support.tools.listing import entries_of, listing

MANY = 10_000
SOME = 400  # several times what fits one reply to the kernel's smallest request
SMALLEST_BUFFER_BYTES = 280  # one record with the longest name, rounded up to 8

DT_FIFO, DT_CHR, DT_DIR, DT_REG, DT_LNK, DT_SOCK = 1, 2, 4, 8, 10, 12

# With the smallest one the kernel asks anew for what did not fit; a page takes a whole reply, so
# that the next request goes on where the last one ended.
every_buffer = pytest.mark.parametrize("buffer_bytes", [SMALLEST_BUFFER_BYTES, 4_096])


def fill(directory: Path, count: int) -> set[str]:
    """Make *count* files with names of various lengths and return their names."""
    names = {f"{number:05}".ljust(5 + number % 60, "-") for number in range(count)}
    for name in names:
        os.close(os.open(directory / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    return names


@pytest.mark.large
def test_many_entries(directory: Path) -> None:
    """Each of 10,000 entries is listed once, with buffers of every size: getdents(2)."""
    names = fill(directory, MANY)
    assert Counter(os.listdir(directory)) == Counter(names)

    with listing(directory) as descriptor:
        entries = entries_of(descriptor, SMALLEST_BUFFER_BYTES, 1_000, 4_096, 5_001, 100_000)
        assert Counter(entry.name for entry in entries) == Counter(names | {".", ".."})


@pytest.mark.large
def test_many_entries_while_others_change(directory: Path, caller: Caller) -> None:
    """A lasting entry is listed once while others are made and removed at once: readdir(3)."""
    lasting = fill(directory, 3_000)

    def churn() -> None:
        for number in itertools.count():
            path = directory / f"passing {number % 300}"
            path.touch()
            if number % 2:
                path.unlink()

    with caller.start(churn):
        counts = [Counter(os.listdir(directory)) for _ in range(5)]
    for count in counts:
        assert {name: count[name] for name in lasting} == dict.fromkeys(lasting, 1)
        assert max(count.values()) == 1


@every_buffer
def test_entries_removed_while_listing(directory: Path, buffer_bytes: int) -> None:
    """Removing what was just listed skips nothing: this is how `rm -r` works, readdir(3)."""
    names = fill(directory, SOME)
    listed = []
    with listing(directory) as descriptor:
        for entry in entries_of(descriptor, buffer_bytes):
            if entry.name not in {".", ".."}:
                listed.append(entry.name)
                os.unlink(entry.name, dir_fd=descriptor)

    assert Counter(listed) == Counter(names)
    assert os.listdir(directory) == []


@every_buffer
def test_entries_made_while_listing(directory: Path, buffer_bytes: int) -> None:
    """What comes while a listing goes on shows once or not at all, the rest once: readdir(3)."""
    names = fill(directory, SOME)
    listed: Counter[str] = Counter()
    with listing(directory) as descriptor:
        for number, entry in enumerate(entries_of(descriptor, buffer_bytes)):
            listed[entry.name] += 1
            if number < SOME:
                (directory / f"late {number}").touch()

    assert {name: listed[name] for name in names} == dict.fromkeys(names, 1)
    assert max(listed.values()) == 1


@every_buffer
def test_entries_removed_ahead_of_the_listing(directory: Path, buffer_bytes: int) -> None:
    """Vanished entries are left out and fail nothing; the lasting ones all come: readdir(3)."""
    names = fill(directory, SOME)
    with listing(directory) as descriptor:
        entries = entries_of(descriptor, buffer_bytes)
        first = [next(entries).name for _ in range(20)]
        vanished = set(sorted(names - set(first))[::2])
        for name in vanished:
            (directory / name).unlink()
        rest = [entry.name for entry in entries]

    listed = Counter(first + rest)
    assert max(listed.values()) == 1
    assert (names - vanished) | {".", ".."} <= set(listed)


def test_dot_entries(directory: Path) -> None:
    """`.` and `..` are listed once each, with the inode numbers they resolve to: readdir(3)."""
    inner = directory / "inner"
    inner.mkdir()
    with listing(inner) as descriptor:
        entries = {entry.name: entry for entry in entries_of(descriptor)}

    assert sorted(entries) == [".", ".."]
    assert {entry.kind for entry in entries.values()} == {DT_DIR}
    assert entries["."].inode == inner.stat().st_ino
    assert entries[".."].inode == directory.stat().st_ino


def test_entries_tell_inode_and_type(directory: Path) -> None:
    """d_ino and d_type are what stat says of each entry: readdir(3)."""
    (directory / "file").touch()
    (directory / "link").symlink_to("file")
    (directory / "hard").hardlink_to(directory / "file")
    (directory / "directory").mkdir()
    os.mkfifo(directory / "fifo")
    os.mknod(directory / "socket", stat.S_IFSOCK | 0o600)
    with listing(directory) as descriptor:
        entries = {entry.name: entry for entry in entries_of(descriptor)}

    kinds = {"file": DT_REG, "hard": DT_REG, "link": DT_LNK, "directory": DT_DIR, "fifo": DT_FIFO}
    kinds["socket"] = DT_SOCK
    assert {name: entries[name].kind for name in kinds} == kinds
    for name in kinds:
        assert entries[name].inode == (directory / name).lstat().st_ino


def test_many_inode_numbers(directory: Path) -> None:
    """The inode numbers of a long listing are those that stat gives: readdir(3)."""
    fill(directory, SOME)
    with os.scandir(directory) as entries:
        listed = {entry.name: entry.inode() for entry in entries}

    assert listed == {path.name: path.lstat().st_ino for path in directory.iterdir()}


@every_buffer
def test_seeking(directory: Path, buffer_bytes: int) -> None:
    """A listing goes on from any remembered position with what came then: seekdir(3)."""
    fill(directory, 150)
    with listing(directory) as descriptor:
        entries = list(entries_of(descriptor, buffer_bytes))
        names = [entry.name for entry in entries]
        for index in (0, 1, 2, 70, 147, 150, 151, 5):
            os.lseek(descriptor, entries[index].position, os.SEEK_SET)
            again = [entry.name for entry in entries_of(descriptor, buffer_bytes)]
            assert again == names[index + 1 :]


def test_positions_outlive_other_entries(directory: Path) -> None:
    """A position stays good while other entries go: seekdir(3), as an NFS server needs it."""
    fill(directory, 150)
    with listing(directory) as descriptor:
        entries = list(entries_of(descriptor, SMALLEST_BUFFER_BYTES))
        place = entries[80]
        for entry in entries[10:60]:
            if entry.name not in {".", ".."}:
                (directory / entry.name).unlink()
        os.lseek(descriptor, place.position, os.SEEK_SET)

        assert next(entries_of(descriptor, SMALLEST_BUFFER_BYTES)).name == entries[81].name


def test_rewinding_shows_what_is_new(directory: Path) -> None:
    """After a return to the start the listing is that of the moment: rewinddir(3)."""
    fill(directory, 20)
    with listing(directory) as descriptor:
        before = {entry.name for entry in entries_of(descriptor)}
        (directory / "new").touch()
        (directory / "00000").unlink()
        os.lseek(descriptor, 0, os.SEEK_SET)
        after = {entry.name for entry in entries_of(descriptor)}

    assert after - before == {"new"}
    assert before - after == {"00000"}


def test_each_listing_is_of_the_moment(directory: Path) -> None:
    """Whoever lists after a change sees it, however often was listed before: readdir(3)."""
    for number in range(5):
        name = f"{number}"
        (directory / name).touch()
        assert os.listdir(directory) == [name]
        (directory / name).rename(directory / f"{name}b")
        assert os.listdir(directory) == [f"{name}b"]
        (directory / f"{name}b").unlink()
        assert os.listdir(directory) == []


def test_two_listings_at_once(directory: Path) -> None:
    """Two listings of one directory each have their own position: opendir(3)."""
    names = fill(directory, SOME)
    with listing(directory) as first, listing(directory) as second:
        pairs = zip(
            entries_of(first, SMALLEST_BUFFER_BYTES), entries_of(second, 4_096), strict=True
        )
        one, two = zip(*((left.name, right.name) for left, right in pairs), strict=True)

    assert one == two
    assert set(one) == names | {".", ".."}


def test_listing_by_several_processes(directory: Path, caller: Caller) -> None:
    """Any number of processes list at once, each completely: readdir(3)."""
    names = fill(directory, SOME)
    listings = together(caller.start(lambda: os.listdir(directory)) for _ in range(4))

    assert [Counter(listed) for listed in listings] == [Counter(names)] * 4


def test_listing_of_a_removed_directory(directory: Path) -> None:
    """A directory that was removed while open lists nothing of what it had: rmdir(2)."""
    inner = directory / "inner"
    inner.mkdir()
    with listing(inner) as descriptor:
        inner.rmdir()

        assert os.listdir(descriptor) == []


def test_empty_and_full_again(directory: Path) -> None:
    """A tree is listed by find as it was made, and is gone after rm: find(1), rm(1)."""
    made = {directory / one / two for one in "abc" for two in "xyz"}
    for path in made:
        path.mkdir(parents=True)
        (path / "file").touch()
    found = subprocess.run(
        ["find", directory, "-type", "f"], check=True, capture_output=True, text=True, timeout=60
    )

    assert set(found.stdout.splitlines()) == {f"{path}/file" for path in made}
    subprocess.run(["rm", "-rf", *directory.iterdir()], check=True, timeout=60)
    assert os.listdir(directory) == []
