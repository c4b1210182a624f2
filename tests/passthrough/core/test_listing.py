"""listing.pyx gives each entry of a stream once, with any offsets of the host's directory.

The streams read directories of ext4 and tmpfs, and a fake host with repeated and huge offsets.
"""

import errno
import itertools
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings, strategies as st

from tests.passthrough.core.probe_listing import CALLS, Listing

MANY = 10_000
FILE_SYSTEMS = ["/var/tmp", "/dev/shm"]  # on a disk, and tmpfs, which takes positions for offsets
AT_ONCE = 32 * 1024


class Entry(NamedTuple):
    """One entry, between two offsets."""

    start: int
    end: int
    number: int
    name: bytes
    kind: int


@pytest.fixture(scope="module", params=FILE_SYSTEMS)
def many(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of 10,000 names."""
    with tempfile.TemporaryDirectory(dir=request.param) as directory:
        for number in range(MANY):
            os.mknod(os.path.join(directory, f"name-{number}"))
        yield Path(directory)


@pytest.fixture(params=FILE_SYSTEMS)
def directory(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of seven names."""
    with tempfile.TemporaryDirectory(dir=request.param) as directory:
        for number in range(7):
            os.mknod(os.path.join(directory, f"name-{number}"))
        yield Path(directory)


@pytest.fixture
def stream(directory: Path) -> Iterator[Listing]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    yield Listing(fd)
    os.close(fd)


@pytest.fixture
def many_fd(many: Path) -> Iterator[int]:
    fd = os.open(many, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def read(stream: Listing, offset: int, room: int = -1) -> list[Entry]:
    return [Entry(*entry) for entry in stream.read(offset, room)]


def reply(stream: Listing, offset: int, room: int) -> tuple[list[bytes], int]:
    """Return the names of one READDIR, and the offset of the next."""
    found = read(stream, offset, room)
    return [entry.name for entry in found], found[-1].end if found else offset


def whole(stream: Listing, rooms: Iterator[int], offset: int = 0) -> list[bytes]:
    """Return all names from *offset* on, in replies that have room for as many as *rooms* says."""
    listed: list[bytes] = []
    for room in rooms:
        names, offset = reply(stream, offset, room)
        if not names:
            break
        listed += names
    return listed


def names_of(stream: Listing, offset: int) -> list[bytes]:
    return [entry.name for entry in read(stream, offset)]


def names_in(directory: Path) -> list[bytes]:
    return sorted([b".", b"..", *(os.fsencode(name) for name in os.listdir(directory))])


def test_entries_are_what_the_host_lists(stream: Listing, directory: Path) -> None:
    entries = read(stream, 0)

    assert sorted(entry.name for entry in entries) == names_in(directory)
    assert {entry.name: entry.number for entry in entries} == {
        name: os.lstat(os.path.join(os.fsencode(directory), name)).st_ino
        for name in names_in(directory)
        if name != b".."
    } | {b"..": directory.parent.stat().st_ino}
    kinds = {entry.name: entry.kind for entry in entries}
    assert (kinds[b"."], kinds[b"name-3"]) == (4, 8)  # DT_DIR, DT_REG
    assert entries[0].start == 0


def test_a_name_may_be_any_bytes_up_to_the_longest(tmp_path: Path) -> None:
    names = [b"\xff\xfe", b"new\nline", b"x" * 255, b" ", b"a", b"abcdefg", b"abcdefgh"]
    for name in names:
        os.mknod(os.path.join(os.fsencode(tmp_path), name))
    fd = os.open(tmp_path, os.O_RDONLY)

    listed = names_of(Listing(fd), 0)
    os.close(fd)

    assert sorted(listed) == sorted([b".", b"..", *names])


@pytest.mark.parametrize("room", [1, 2, 3, 8, 9, 100])
def test_an_entry_that_did_not_fit_comes_first_next_time(
    stream: Listing, directory: Path, room: int
) -> None:
    listed = whole(stream, itertools.repeat(room))

    assert sorted(listed) == names_in(directory)


def test_every_offset_leads_back_to_its_entry(stream: Listing) -> None:
    """seekdir(3), in any order: what was given as an offset once stays good."""
    entries = read(stream, 0)
    names = [entry.name for entry in entries]

    for index in [*range(len(entries)), *reversed(range(len(entries)))]:
        assert names_of(stream, entries[index].start) == names[index:]


def test_the_end_stays_the_end(stream: Listing) -> None:
    *_, last = read(stream, 0)

    assert read(stream, last.end) == []
    assert read(stream, last.end) == []


def test_going_on_in_the_window_asks_the_host_for_nothing(stream: Listing) -> None:
    """Two getdents64 for the whole of a small directory, however many the replies."""
    whole(stream, itertools.repeat(2))

    # The names, the end, and the end for the empty last reply.
    assert CALLS["getdents64"] <= 3
    assert CALLS["lseek"] == 1


def test_from_the_start_the_listing_is_read_anew(stream: Listing, directory: Path) -> None:
    """rewinddir(3) sees what was created and removed meanwhile."""
    reply(stream, 0, 3)
    (directory / "new").touch()
    (directory / "name-3").unlink()

    listed = whole(stream, itertools.repeat(4))

    assert sorted(listed) == names_in(directory)


def test_a_stream_that_was_read_to_its_end_keeps_no_memory(many_fd: int) -> None:
    stream = Listing(many_fd)

    _, offset = reply(stream, 0, 10)
    assert stream.memory[0] == AT_ONCE
    names, offset = reply(stream, offset, MANY)
    assert stream.memory[0] > AT_ONCE  # a reply can be asked for again in part
    assert len(names) == MANY + 2 - 10
    assert reply(stream, offset, 10) == ([], offset)

    assert stream.memory[0] == 0


def test_a_shared_stream_keeps_no_more_than_the_last_reply(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    stream = Listing(fd, shared=True)

    names, offset = reply(stream, 0, 3)
    kept = stream.memory[0]
    names += whole(stream, itertools.repeat(100), offset)
    os.close(fd)

    assert kept < 1024
    assert sorted(names) == names_in(directory)


def test_a_shared_stream_is_read_from_two_places_at_once(many_fd: int) -> None:
    stream = Listing(many_fd, shared=True)
    listed: list[list[bytes]] = [[], []]
    offsets = [0, 0]
    for reader, room in itertools.cycle([(0, 700), (1, 900), (0, 31)]):
        names, offsets[reader] = reply(stream, offsets[reader], room)
        listed[reader] += names
        if not names:
            break

    listed[0] += whole(stream, itertools.repeat(5000), offsets[0])
    listed[1] += whole(stream, itertools.repeat(5000), offsets[1])
    assert [len(names) for names in listed] == [MANY + 2] * 2
    assert [len(set(names)) for names in listed] == [MANY + 2] * 2


def test_listings_of_a_shared_stream_add_up_to_nothing(many_fd: int) -> None:
    stream = Listing(many_fd, shared=True)
    first = read(stream, 0)

    for _ in range(5):
        assert read(stream, 0) == first

    assert stream.memory[1] == 0


@settings(max_examples=15)
@given(
    rooms=st.lists(st.integers(1, 3000), min_size=1, max_size=50),
    seeks=st.lists(st.integers(0, 49), max_size=5),
)
def test_many_names_are_listed_once_each_wherever_replies_end(
    many: Path, rooms: list[int], seeks: list[int]
) -> None:
    """Also when the listing jumps back to an offset that it was at before."""
    fd = os.open(many, os.O_RDONLY)
    stream = Listing(fd)
    listed: list[bytes] = []
    states = [(0, 0)]
    offset = 0
    for number, room in enumerate(itertools.cycle(rooms)):
        names, offset = reply(stream, offset, room)
        if not names:
            break
        listed += names
        states.append((offset, len(listed)))
        if number in seeks:
            seeks = [seek for seek in seeks if seek != number]
            del states[len(states) // 2 + 1 :]
            offset, length = states[-1]
            del listed[length:]
    os.close(fd)

    assert len(listed) == MANY + 2
    assert len(set(listed)) == MANY + 2


@settings(max_examples=15)
@given(rooms=st.lists(st.integers(1, 700), min_size=1, max_size=20))
def test_names_that_stay_are_listed_once_while_others_come_and_go(
    many: Path, rooms: list[int]
) -> None:
    """readdir(3) leaves open whether the others are seen; not that it may lose or repeat these."""
    fd = os.open(many, os.O_RDONLY)
    stream = Listing(fd)
    try:
        listed: list[bytes] = []
        offset = 0
        for number, room in enumerate(itertools.cycle(rooms)):
            names, offset = reply(stream, offset, room)
            if not names:
                break
            listed += names
            (many / f"passing-{number}").touch()
            if number:
                (many / f"passing-{number - 1}").unlink()
    finally:
        os.close(fd)
        for left in many.glob("passing-*"):
            left.unlink()

    staying = [name for name in listed if not name.startswith(b"passing")]
    assert len(staying) == MANY + 2
    assert len(set(staying)) == MANY + 2


def test_reading_a_stream_of_no_directory_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)

    with pytest.raises(NotADirectoryError):
        read(Listing(fd), 0)
    os.close(fd)


def record(name: bytes, offset: int, length: int | None = None) -> bytes:
    """Return a struct linux_dirent64, getdents64(2)."""
    right = -(-(20 + len(name)) // 8) * 8
    head = struct.pack("=QqHB", 1, offset, right if length is None else length, 0)
    return (head + name).ljust(right, b"\0")


class OddHost:
    """A directory in place of the host's: each entry with the offset (d_off) of the place behind.

    lseek(2) leads to the first place of an offset, and fails for those beyond 2^63.
    """

    def __init__(self, entries: list[tuple[str, int]], per_call: int = 3) -> None:
        self.entries = entries
        self.per_call = per_call
        self.position: int | str = 0
        self.gone: set[str] = set()
        self.error = 0

    def lseek(self, offset: int) -> int:
        if offset < 0:
            raise OSError(errno.EINVAL, "beyond")
        self.position = offset
        return offset

    def getdents64(self, _size: int) -> bytes:
        if self.error:
            raise OSError(self.error, "host")
        left = [entry for entry in self.entries[self._index() :] if entry[0] not in self.gone]
        data = b""
        for name, offset in left[: self.per_call]:
            self.position = name
            data += record(name.encode(), offset)
        return data

    def _index(self) -> int:
        """Behind the entry listed last, or where lseek has led."""
        if self.position == 0:
            return 0
        for index, (name, offset) in enumerate(self.entries):
            if self.position in {name, offset}:
                return index + 1
        return len(self.entries)


def odd(*offsets: int, shared: bool = False) -> tuple[OddHost, Listing]:
    host = OddHost([(f"name-{index}", offset) for index, offset in enumerate(offsets)])
    return host, Listing(-1, host=host, shared=shared)


BEYOND = -(1 << 40)  # as a signed number, what is beyond 2^63
LAST = (1 << 63) - 1  # what ext4 gives its last entry
ODD_OFFSETS = {
    "three alike": [5, 7, 7, 7, 9, 12],
    "three alike at the start": [4, 4, 4, 6, 8],
    "three alike at the end": [3, 9, 9, 9],
    "all alike": [7] * 8,
    "all none": [0] * 8,
    "beyond 2^63": [BEYOND + index for index in range(8)],
    "all beyond, and alike": [BEYOND] * 8,
    "the highest": [1, 2, 3, LAST - 3, LAST - 2, LAST],
}
# Without a place that lseek(2) leads to.
UNMARKED = ["all none", "beyond 2^63", "all beyond, and alike"]
each_odd = pytest.mark.parametrize("offsets", ODD_OFFSETS.values(), ids=ODD_OFFSETS)
each_kind = pytest.mark.parametrize("shared", [False, True])


@each_kind
@pytest.mark.parametrize("room", [1, 2, 3, 4, 100])
@each_odd
def test_each_entry_is_listed_once_over_odd_offsets(
    offsets: list[int], room: int, shared: bool
) -> None:
    host, stream = odd(*offsets, shared=shared)

    for _ in range(2):
        listed = whole(stream, itertools.repeat(room))
        assert listed == [name.encode() for name, _ in host.entries]


@each_odd
def test_a_reply_is_gone_on_with_from_any_place_inside(offsets: list[int]) -> None:
    """The kernel asks so when its own caller had less room; what was deleted is found by then."""
    host, stream = odd(*offsets)
    entries = read(stream, 0)
    names = [entry.name for entry in entries]
    host.gone |= {name for name, _ in host.entries}

    for index in range(1, len(entries)):
        assert names_of(stream, entries[index].start) == names[index:]


@pytest.mark.parametrize("room", [1, 2, 7, 100])
def test_another_process_lists_the_rest(stream: Listing, directory: Path, room: int) -> None:
    listed: list[bytes] = []
    offset = 0
    while True:
        names, offset = reply(stream, offset, room)
        if not names:
            break
        listed += names
        stream.take_over()

    assert sorted(listed) == names_in(directory)


@each_kind
@pytest.mark.parametrize("room", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("kind", [kind for kind in ODD_OFFSETS if kind not in UNMARKED])
def test_another_process_lists_the_rest_over_odd_offsets(
    kind: str, room: int, shared: bool
) -> None:
    host, stream = odd(*ODD_OFFSETS[kind], shared=shared)
    listed: list[bytes] = []
    offset = 0
    while True:
        names, offset = reply(stream, offset, room)
        if not names:
            break
        listed += names
        host.gone.add(names[-1].decode())
        stream.take_over()

    assert listed == [name.encode() for name, _ in host.entries]


@pytest.mark.parametrize("kind", UNMARKED)
def test_another_process_does_not_find_a_place_beyond(kind: str) -> None:
    """The caller hears of it, and misses no entry unawares."""
    _, stream = odd(*ODD_OFFSETS[kind])
    _, offset = reply(stream, 0, 3)
    stream.take_over()

    with pytest.raises(OSError, match="22"):
        read(stream, offset)


@each_kind
def test_offsets_that_a_process_gives_are_not_those_of_another_before(shared: bool) -> None:
    _, stream = odd(5, *[7] * 8, shared=shared)
    before = read(stream, 0)
    stream.take_over()
    after = read(stream, 0)
    stream.take_over()

    for index, (first, second) in enumerate(zip(before, after, strict=True)):
        assert index < 3 or first.start != second.start
        for entry in (first, second):
            assert names_of(stream, entry.start) == [later.name for later in before[index:]]


@each_kind
@pytest.mark.parametrize("offsets", [[5, 7, 7, 7, 9, 12], [7] * 8, [1, 2, LAST - 1, LAST]])
def test_an_offset_that_was_made_up_leads_back_by_seeking(offsets: list[int], shared: bool) -> None:
    _, stream = odd(*offsets, shared=shared)
    entries = read(stream, 0)
    names = [entry.name for entry in entries]

    for index in [*range(1, len(entries)), *reversed(range(1, len(entries)))]:
        read(stream, entries[-1].end)
        assert names_of(stream, entries[index].start) == names[index:]


def test_a_place_among_entries_alike_outlives_the_entries_before_it() -> None:
    """Their names tell which have been passed: a number of them would skip one that has not."""
    host, stream = odd(5, 7, 7, 7, 7, 9)
    places = {entry.name: entry.end for entry in read(stream, 0)}
    read(stream, places[b"name-5"])
    host.gone.add("name-2")

    assert names_of(stream, places[b"name-2"]) == [b"name-3", b"name-4", b"name-5"]


def test_a_shared_stream_has_one_offset_for_one_place() -> None:
    host, stream = odd(*[7] * 5, LAST, shared=True)
    entries = read(stream, 0)
    known = stream.memory[1]

    assert read(stream, 0) == entries
    assert stream.memory[1] == known

    # The place behind the first entry is the host's. Behind the others, other names are passed now.
    host.gone.add("name-0")
    _, *other, _ = read(stream, 0)
    assert not {entry.end for entry in other} & {entry.end for entry in entries}


def test_a_return_to_the_start_keeps_no_memory_for_offsets_of_the_last_listing() -> None:
    _, stream = odd(*[7] * 8)
    before = read(stream, 0)
    assert stream.memory[1] == 7  # the place behind the first is the host's
    after = read(stream, 0)
    assert stream.memory[1] == 7

    for entries in (before, after):
        assert names_of(stream, entries[4].end) == [b"name-5", b"name-6", b"name-7"]


def test_an_offset_beyond_leads_nowhere_once_it_is_out_of_hand() -> None:
    """A seek leads where it leads on the bare directory, and never to a wrong place."""
    _, stream = odd(*[BEYOND + index for index in range(4)])
    entries = read(stream, 0)
    read(stream, 0)
    reply(stream, 0, 2)

    with pytest.raises(OSError, match="22"):
        read(stream, entries[2].end)


@pytest.mark.parametrize("offset", [1 << 63, (1 << 63) - (1 << 32), (1 << 64) - 1])
def test_an_offset_that_was_never_given_leads_nowhere(offset: int) -> None:
    _, stream = odd(1, 2, 3)

    for _ in range(2):
        with pytest.raises(OSError, match="22"):
            read(stream, offset)
        assert len(read(stream, 0)) == 3


def test_a_failing_host_is_gone_on_with_once_it_works() -> None:
    host, stream = odd(1, 2, 3, 4, 5)
    names, offset = reply(stream, 0, 2)
    host.error = errno.EIO

    with pytest.raises(OSError, match="5"):
        read(stream, offset)
    host.error = 0

    assert names + names_of(stream, offset) == [f"name-{index}".encode() for index in range(5)]


class Garbled:
    """A host that writes what is no entry, behind one that is."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.garbled = True
        self.position = 0

    def lseek(self, offset: int) -> int:
        self.position = offset
        return offset

    def getdents64(self, _size: int) -> bytes:
        left = [record(b"%d" % number, number + 1) for number in range(self.position, 4)]
        self.position = 4
        if left and self.garbled:
            left[1:2] = [self.data]
        return b"".join(left)


GARBLED = {
    "too short": record(b"name", 2, 16),
    "no length": record(b"name", 2, 0),
    "longer than what is there": record(b"name", 2, 65528),
    "odd": record(b"name", 2, 25),
    "no end of the name": record(b"name", 2)[:19] + b"x" * 13,
    "cut": record(b"name", 2)[:16],
}


@pytest.mark.parametrize("data", GARBLED.values(), ids=GARBLED)
def test_what_is_no_entry_is_eio_and_read_again_later(data: bytes) -> None:
    host = Garbled(data)
    stream = Listing(-2, host=host)

    with pytest.raises(OSError, match=str(errno.EIO)):
        read(stream, 0)
    host.garbled = False

    assert names_of(stream, 1) == [b"1", b"2", b"3"]
    assert names_of(stream, 0) == [b"0", b"1", b"2", b"3"]


@settings(max_examples=200)
@given(
    groups=st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 4, BEYOND, BEYOND + 1, LAST]), st.integers(1, 5)),
        unique_by=lambda group: group[0],
    ),
    rooms=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6),
    deleted=st.sets(st.integers(0, 20)),
    shared=st.booleans(),
)
def test_lasting_entries_are_listed_once_by_replies_that_are_read_in_part(
    groups: list[tuple[int, int]],
    rooms: list[tuple[int, int]],
    deleted: set[int],
    shared: bool,
) -> None:
    """Over offsets of every kind, while names are deleted as soon as they were seen, rm(1)."""
    offsets = [offset for offset, count in groups for _ in range(count)]
    host, stream = odd(*offsets, shared=shared)
    listed: list[bytes] = []
    offset = 0
    for room, taken in itertools.cycle(rooms):
        entries = read(stream, offset, room)[:taken]
        if not entries:
            break
        listed += [entry.name for entry in entries]
        offset = entries[-1].end
        seen = {name.decode() for name in listed}
        host.gone |= seen & {f"name-{index}" for index in deleted}

    assert listed == [name.encode() for name, _ in host.entries]
