"""Listings: complete, stable while names are added and removed, with right attributes."""

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
SOME = 400  # fills several replies to the kernel's smallest request
SMALLEST_BUFFER_BYTES = 280  # one record with the longest name, rounded up to 8

DT_FIFO, DT_CHR, DT_DIR, DT_REG, DT_LNK, DT_SOCK = 1, 2, 4, 8, 10, 12

# With the smallest buffer the kernel requests again the entries that did not fit. A page takes a
# whole reply, so that the next request begins where the last one ended.
every_buffer = pytest.mark.parametrize("buffer_bytes", [SMALLEST_BUFFER_BYTES, 4_096])


def fill(directory: Path, count: int) -> set[str]:
    """Make *count* files with names of various lengths and return their names."""
    names = {f"{number:05}".ljust(5 + number % 60, "-") for number in range(count)}
    for name in names:
        os.close(os.open(directory / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    return names


@pytest.mark.slow
@pytest.mark.large
def test_many_entries(directory: Path) -> None:
    """Each of 10,000 entries is listed once, with buffers of every size: getdents(2)."""
    names = fill(directory, MANY)
    assert Counter(os.listdir(directory)) == Counter(names)

    with listing(directory) as descriptor:
        entries = entries_of(descriptor, SMALLEST_BUFFER_BYTES, 1_000, 4_096, 5_001, 100_000)
        assert Counter(entry.name for entry in entries) == Counter(names | {".", ".."})


@pytest.mark.large
def test_many_entries_while_other_entries_change(directory: Path, caller: Caller) -> None:
    """A lasting entry is listed once while other ones are made and removed: readdir(3)."""
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
    """A listing skips nothing while the listed entries are removed, as by `rm -r`: readdir(3)."""
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
    """An entry made during a listing is listed once or not at all, each other once: readdir(3)."""
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
    """Removed entries do not fail a listing, and all lasting entries are listed: readdir(3)."""
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


def test_entries_have_inode_and_type(directory: Path) -> None:
    """d_ino and d_type agree with stat(2) for each entry: readdir(3)."""
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
    """The inode numbers of a long listing agree with stat(2): readdir(3)."""
    fill(directory, SOME)
    with os.scandir(directory) as entries:
        listed = {entry.name: entry.inode() for entry in entries}

    assert listed == {path.name: path.lstat().st_ino for path in directory.iterdir()}


@every_buffer
def test_seeking(directory: Path, buffer_bytes: int) -> None:
    """After a seek to an earlier position the listing continues with the same names: seekdir(3)."""
    fill(directory, 150)
    with listing(directory) as descriptor:
        entries = list(entries_of(descriptor, buffer_bytes))
        names = [entry.name for entry in entries]
        for index in (0, 1, 2, 70, 147, 150, 151, 5):
            os.lseek(descriptor, entries[index].position, os.SEEK_SET)
            again = [entry.name for entry in entries_of(descriptor, buffer_bytes)]
            assert again == names[index + 1 :]


def test_positions_outlive_other_entries(directory: Path) -> None:
    """A position stays valid while other entries are removed: seekdir(3). NFS servers need this."""
    fill(directory, 150)
    with listing(directory) as descriptor:
        entries = list(entries_of(descriptor, SMALLEST_BUFFER_BYTES))
        entry_before = entries[80]
        for entry in entries[10:60]:
            if entry.name not in {".", ".."}:
                (directory / entry.name).unlink()
        os.lseek(descriptor, entry_before.position, os.SEEK_SET)

        assert next(entries_of(descriptor, SMALLEST_BUFFER_BYTES)).name == entries[81].name


def test_rewinding_shows_new_entries(directory: Path) -> None:
    """After a return to the start the listing has the current entries: rewinddir(3)."""
    fill(directory, 20)
    with listing(directory) as descriptor:
        before = {entry.name for entry in entries_of(descriptor)}
        (directory / "new").touch()
        (directory / "00000").unlink()
        os.lseek(descriptor, 0, os.SEEK_SET)
        after = {entry.name for entry in entries_of(descriptor)}

    assert after - before == {"new"}
    assert before - after == {"00000"}


def test_each_listing_shows_the_last_change(directory: Path) -> None:
    """A listing after a change shows the change, also after earlier listings: readdir(3)."""
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
    """Several processes list at once, and each listing is complete: readdir(3)."""
    names = fill(directory, SOME)
    listings = together(caller.start(lambda: os.listdir(directory)) for _ in range(4))

    assert [Counter(listed) for listed in listings] == [Counter(names)] * 4


def test_listing_of_a_removed_directory(directory: Path) -> None:
    """An open directory that was removed has no entries: rmdir(2)."""
    inner = directory / "inner"
    inner.mkdir()
    with listing(inner) as descriptor:
        inner.rmdir()

        assert os.listdir(descriptor) == []


def test_find_and_rm_of_a_tree(directory: Path) -> None:
    """Find lists a tree completely, and rm removes it: find(1), rm(1)."""
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
