"""Directory streams: over real file systems, and over hosts whose offsets are odd."""

import ctypes
import errno
import itertools
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from passthrough.core.listing import OpenDirectory
from passthrough.linux import syscalls

MANY = 10_000
FILE_SYSTEMS = ["/var/tmp", "/dev/shm"]  # the disk's, and tmpfs, whose offsets are positions


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
def stream(directory: Path) -> Iterator[OpenDirectory]:
    stream = OpenDirectory(1, os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
    yield stream
    stream.close()


def reply(stream: OpenDirectory, offset: int, room: int) -> tuple[list[bytes], int]:
    """What a session does for one READDIR: takes entries until one does not fit."""
    names: list[bytes] = []
    for record in stream.read(offset):
        if len(names) == room:
            break
        names.append(record.name)
        offset = record.end
    return names, offset


def whole(stream: OpenDirectory, rooms: Iterator[int], offset: int = 0) -> list[bytes]:
    """All names from *offset* on, in replies that have room for as many as *rooms* says."""
    listed: list[bytes] = []
    for room in rooms:
        names, offset = reply(stream, offset, room)
        if not names:
            break
        listed += names
    return listed


def names_in(directory: Path) -> list[bytes]:
    return sorted([b".", b"..", *(os.fsencode(name) for name in os.listdir(directory))])


def test_records_are_what_the_host_lists(stream: OpenDirectory, directory: Path) -> None:
    records = list(stream.read(0))

    assert sorted(record.name for record in records) == names_in(directory)
    assert {record.name: record.number for record in records} == {
        name: os.lstat(os.path.join(os.fsencode(directory), name)).st_ino
        for name in names_in(directory)
        if name != b".."
    } | {b"..": directory.parent.stat().st_ino}
    assert records[0].start == 0
    assert all(one.end == next_one.start for one, next_one in itertools.pairwise(records))


def test_a_name_may_be_any_bytes_up_to_the_longest(tmp_path: Path) -> None:
    names = [b"\xff\xfe", b"new\nline", b"x" * 255, b" ", b"a", b"abcdefg", b"abcdefgh"]
    for name in names:
        os.mknod(os.path.join(os.fsencode(tmp_path), name))
    stream = OpenDirectory(1, os.open(tmp_path, os.O_RDONLY))

    listed = [record.name for record in stream.read(0)]
    stream.close()

    assert sorted(listed) == sorted([b".", b"..", *names])


@pytest.mark.parametrize("room", [1, 2, 3, 8, 9, 100])
def test_an_entry_that_did_not_fit_comes_first_next_time(
    stream: OpenDirectory, directory: Path, room: int
) -> None:
    listed = whole(stream, itertools.repeat(room))

    assert sorted(listed) == names_in(directory)


def test_every_offset_leads_back_to_its_entry(stream: OpenDirectory) -> None:
    """seekdir(3), in any order: what was given as an offset once stays good."""
    records = list(stream.read(0))

    for index in [*range(len(records)), *reversed(range(len(records)))]:
        following = [record.name for record in stream.read(records[index].start)]
        assert following == [record.name for record in records[index:]]


def test_the_end_stays_the_end(stream: OpenDirectory) -> None:
    *_, last = stream.read(0)

    assert list(stream.read(last.end)) == []
    assert list(stream.read(last.end)) == []


def test_going_on_in_the_buffer_asks_the_host_for_nothing(
    stream: OpenDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two getdents64 for the whole of a small directory, however many the replies."""
    asked = counted_calls(monkeypatch)

    whole(stream, itertools.repeat(2))

    assert asked["getdents64"] <= 3  # the names, the end, and the end for the empty last reply
    assert asked["lseek"] == 1


def counted_calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    calls = {"getdents64": 0, "lseek": 0}

    def counting(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            calls[name] += 1
            return real(*arguments)

        return call

    monkeypatch.setattr(syscalls, "getdents64", counting("getdents64", syscalls.getdents64))
    monkeypatch.setattr(os, "lseek", counting("lseek", os.lseek))
    return calls


def test_from_the_start_the_listing_is_read_anew(stream: OpenDirectory, directory: Path) -> None:
    """rewinddir(3) sees what was created and removed meanwhile."""
    reply(stream, 0, 3)
    (directory / "new").touch()
    (directory / "name-3").unlink()

    listed = whole(stream, itertools.repeat(4))

    assert sorted(listed) == names_in(directory)


@settings(max_examples=15, deadline=None)
@given(
    rooms=st.lists(st.integers(1, 3000), min_size=1, max_size=50),
    seeks=st.lists(st.integers(0, 49), max_size=5),
)
def test_many_names_are_listed_once_each_wherever_replies_end(
    many: Path, rooms: list[int], seeks: list[int]
) -> None:
    """Also when the listing jumps back to an offset that it was at before."""
    stream = OpenDirectory(1, os.open(many, os.O_RDONLY))
    try:
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
    finally:
        stream.close()

    assert len(listed) == MANY + 2
    assert len(set(listed)) == MANY + 2


@settings(max_examples=15, deadline=None)
@given(rooms=st.lists(st.integers(1, 700), min_size=1, max_size=20))
def test_names_that_stay_are_listed_once_while_others_come_and_go(
    many: Path, rooms: list[int]
) -> None:
    """readdir(3) leaves open whether the others are seen; not that it may lose or repeat these."""
    stream = OpenDirectory(1, os.open(many, os.O_RDONLY))
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
        stream.close()
        for left in many.glob("passing-*"):
            left.unlink()

    staying = [name for name in listed if not name.startswith(b"passing")]
    assert len(staying) == MANY + 2
    assert len(set(staying)) == MANY + 2


def test_reading_a_stream_of_no_directory_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stream = OpenDirectory(1, os.open(tmp_path / "file", os.O_RDONLY))

    with pytest.raises(NotADirectoryError):
        list(stream.read(0))
    stream.close()


class OddHost:
    """A directory in place of the host's: each entry with the offset (d_off) of the place behind.

    lseek(2) leads to the first place of an offset, and fails for those beyond 2^63.
    """

    def __init__(self, entries: list[tuple[str, int]], per_call: int = 3) -> None:
        self.entries = entries
        self.per_call = per_call
        self.position: int | str = 0
        self.gone: set[str] = set()

    def lseek(self, _fd: int, offset: int, _whence: int) -> int:
        if offset < 0:
            raise OSError(errno.EINVAL, "beyond")
        self.position = offset
        return offset

    def getdents64(self, _fd: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
        left = [entry for entry in self.entries[self._index() :] if entry[0] not in self.gone]
        data = b""
        for name, offset in left[: self.per_call]:
            self.position = name
            length = -(-(20 + len(name)) // 8) * 8
            head = struct.pack("=QqHB", 1, offset, length, 0)
            data += (head + name.encode()).ljust(length, b"\0")
        ctypes.memmove(buffer, data, len(data))
        return len(data)

    def _index(self) -> int:
        """Behind the entry listed last, or where lseek has led."""
        if self.position == 0:
            return 0
        for index, (name, offset) in enumerate(self.entries):
            if self.position in {name, offset}:
                return index + 1
        return len(self.entries)


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[OddHost, OpenDirectory]]:
    def make(*offsets: int) -> tuple[OddHost, OpenDirectory]:
        host = OddHost([(f"name-{index}", offset) for index, offset in enumerate(offsets)])
        monkeypatch.setattr(syscalls, "getdents64", host.getdents64)
        monkeypatch.setattr(os, "lseek", host.lseek)
        return host, OpenDirectory(1, -1)

    return make


Odd = Callable[..., tuple[OddHost, OpenDirectory]]
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


@pytest.mark.parametrize("room", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("offsets", ODD_OFFSETS.values(), ids=ODD_OFFSETS)
def test_each_entry_is_listed_once_whatever_the_hosts_offsets(
    odd: Odd, offsets: list[int], room: int
) -> None:
    host, stream = odd(*offsets)

    listed = whole(stream, itertools.repeat(room))

    assert listed == [name.encode() for name, _ in host.entries]


@pytest.mark.parametrize("offsets", ODD_OFFSETS.values(), ids=ODD_OFFSETS)
def test_a_reply_is_gone_on_with_from_any_place_inside(odd: Odd, offsets: list[int]) -> None:
    """The kernel asks so when its own caller had less room; what was deleted is found by then."""
    host, stream = odd(*offsets)
    records = list(stream.read(0))
    names = [record.name for record in records]
    host.gone |= {name for name, _ in host.entries}

    for index in range(1, len(records)):
        assert [record.name for record in stream.read(records[index].start)] == names[index:]


@pytest.mark.parametrize("offsets", [[5, 7, 7, 7, 9, 12], [7] * 8, [1, 2, LAST - 1, LAST]])
def test_an_offset_that_was_made_up_leads_back_by_seeking(odd: Odd, offsets: list[int]) -> None:
    _, stream = odd(*offsets)
    records = list(stream.read(0))
    names = [record.name for record in records]

    for index in [*range(1, len(records)), *reversed(range(1, len(records)))]:
        list(stream.read(records[-1].end))
        assert [record.name for record in stream.read(records[index].start)] == names[index:]


def test_a_place_among_entries_alike_outlives_the_entries_before_it(odd: Odd) -> None:
    """Their names tell which have been passed: a number of them would skip one that has not."""
    host, stream = odd(5, 7, 7, 7, 7, 9)
    places = {record.name: record.end for record in stream.read(0)}
    list(stream.read(places[b"name-5"]))
    host.gone.add("name-2")

    listed = [record.name for record in stream.read(places[b"name-2"])]

    assert listed == [b"name-3", b"name-4", b"name-5"]


def test_an_offset_beyond_leads_nowhere_once_it_is_out_of_hand(odd: Odd) -> None:
    """As on the bare directory, and never to a wrong place."""
    _, stream = odd(*[BEYOND + index for index in range(4)])
    records = list(stream.read(0))
    list(stream.read(0))
    reply(stream, 0, 2)

    with pytest.raises(OSError, match="Invalid argument"):
        list(stream.read(records[2].end))


@settings(max_examples=200, deadline=None)
@given(
    groups=st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 4, BEYOND, BEYOND + 1, LAST]), st.integers(1, 5)),
        unique_by=lambda group: group[0],
    ),
    rooms=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6),
    deleted=st.sets(st.integers(0, 20)),
)
def test_lasting_entries_are_listed_once_by_replies_that_are_read_in_part(
    groups: list[tuple[int, int]], rooms: list[tuple[int, int]], deleted: set[int]
) -> None:
    """Over offsets of every kind, while names are deleted as soon as they were seen, rm(1)."""
    offsets = [offset for offset, count in groups for _ in range(count)]
    host = OddHost([(f"name-{index}", offset) for index, offset in enumerate(offsets)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(syscalls, "getdents64", host.getdents64)
        patch.setattr(os, "lseek", host.lseek)
        stream = OpenDirectory(1, -1)
        listed: list[bytes] = []
        offset = 0
        for room, taken in itertools.cycle(rooms):
            records = list(itertools.islice(stream.read(offset), room))[:taken]
            if not records:
                break
            listed += [record.name for record in records]
            offset = records[-1].end
            seen = {name.decode() for name in listed}
            host.gone |= seen & {f"name-{index}" for index in deleted}

    assert listed == [name.encode() for name, _ in host.entries]
