import errno
import fcntl
import itertools
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from passthrough import syscalls
from passthrough.handles import DirectFile, HandleTable, OpenDirectory, OpenFile

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


HANDLES = [OpenFile, OpenDirectory]


@pytest.fixture
def table() -> Iterator[HandleTable[OpenFile]]:
    table: HandleTable[OpenFile] = HandleTable()
    yield table
    table.close()


@pytest.mark.parametrize("kind", HANDLES)
def test_a_handle_is_closed_once(kind: type[OpenFile | OpenDirectory], tmp_path: Path) -> None:
    """It forgets the number first: that may belong to another file by the time of a second call."""
    handle = kind(7, os.open(tmp_path, os.O_RDONLY))
    fd = handle.fd
    assert handle.inode_number == 7

    handle.close()
    reused = os.open(tmp_path, os.O_RDONLY)
    try:
        assert reused == fd
        with pytest.raises(OSError, match="Bad file descriptor"):
            handle.close()
        os.fstat(reused)
    finally:
        os.close(reused)


def test_a_number_stands_for_its_handle_and_is_never_given_twice(
    table: HandleTable[OpenFile], tmp_path: Path
) -> None:
    handles = [OpenFile(index, os.open(tmp_path, os.O_PATH)) for index in range(3)]
    numbers = [table.add(handle) for handle in handles]
    assert [table[number] for number in numbers] == handles

    table.release(numbers[2])
    fresh = table.add(OpenFile(9, os.open(tmp_path, os.O_PATH)))

    assert len({*numbers, fresh}) == 4
    assert len(table) == 3


def test_an_unknown_number_is_a_bad_descriptor(
    table: HandleTable[OpenFile], tmp_path: Path
) -> None:
    number = table.add(OpenFile(1, os.open(tmp_path, os.O_PATH)))
    table.release(number)

    for use in (table.__getitem__, table.release):
        for wrong in (number, 0, number + 1):
            with pytest.raises(OSError, match="Bad file descriptor") as bad:
                use(wrong)
            assert bad.value.errno == errno.EBADF


def test_release_forgets_the_handle_even_where_closing_fails(
    table: HandleTable[OpenFile], tmp_path: Path
) -> None:
    handle = OpenFile(1, os.open(tmp_path, os.O_PATH))
    number = table.add(handle)
    handle.close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        table.release(number)

    assert len(table) == 0


def test_close_closes_every_handle(tmp_path: Path) -> None:
    table: HandleTable[OpenDirectory] = HandleTable()
    handles = [OpenDirectory(1, os.open(tmp_path, os.O_RDONLY)) for _ in range(5)]
    fds = [handle.fd for handle in handles]
    for handle in handles:
        table.add(handle)

    table.close()

    assert len(table) == 0
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


BLOCK_BYTES = 4096


@pytest.fixture
def direct(tmp_path: Path) -> Iterator[DirectFile]:
    """A file that is open with O_DIRECT: two blocks and ten bytes."""
    path = tmp_path / "file"
    path.write_bytes(b"a" * BLOCK_BYTES + b"b" * BLOCK_BYTES + b"0123456789")
    file = DirectFile(1, os.open(path, os.O_RDWR | os.O_DIRECT))
    yield file
    file.close()


def bare(call: Callable[[int], int], fd: int) -> int:
    """The errno that the host's own file system gives, 0 for none."""
    try:
        call(fd)
    except OSError as error:
        return error.errno or 0
    return 0


def test_direct_reads_and_writes_have_aligned_buffers(direct: DirectFile) -> None:
    """Plain bytes never lie at a page, and the host would refuse them."""
    data = b"c" * BLOCK_BYTES

    assert direct.write(BLOCK_BYTES, data) == BLOCK_BYTES
    assert direct.read(0, 2 * BLOCK_BYTES) == b"a" * BLOCK_BYTES + data
    assert direct.read(2 * BLOCK_BYTES, BLOCK_BYTES) == b"0123456789"
    assert direct.read(3 * BLOCK_BYTES, BLOCK_BYTES) == b""


@pytest.mark.parametrize(("offset", "size"), [(1, BLOCK_BYTES), (0, 7), (3, 5)])
def test_what_is_not_aligned_is_answered_as_the_host_does(
    direct: DirectFile, offset: int, size: int
) -> None:
    buffer = mmap.mmap(-1, 2 * BLOCK_BYTES)
    view = memoryview(buffer)[:size]
    reading = bare(lambda fd: os.preadv(fd, [view], offset), direct.fd)
    writing = bare(lambda fd: os.pwritev(fd, [view], offset), direct.fd)

    assert bare(lambda _: len(direct.read(offset, size)), direct.fd) == reading
    assert bare(lambda _: direct.write(offset, bytes(size)), direct.fd) == writing
    view.release()
    buffer.close()


def test_the_rest_of_a_mapped_file_is_written_wherever_it_ends(direct: DirectFile) -> None:
    """And the file is as direct afterwards as before."""
    assert direct.write(2 * BLOCK_BYTES, b"9876543210") == 10
    assert direct.read(2 * BLOCK_BYTES, BLOCK_BYTES) == b"9876543210"
    assert fcntl.fcntl(direct.fd, fcntl.F_GETFL) & os.O_DIRECT


def test_a_file_knows_whether_it_appends(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for flags, appends in ((os.O_WRONLY, False), (os.O_WRONLY | os.O_APPEND, True)):
        file = OpenFile(1, os.open(tmp_path / "file", flags))
        assert file.appends is appends
        file.close()
