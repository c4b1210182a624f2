import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough.core.handles import DirectFile, HandleTable, OpenFile
from passthrough.core.listing import OpenDirectory
from tests.support.tools.direct import descriptors_below

HANDLES: list[type[OpenFile] | type[OpenDirectory]] = [OpenFile, OpenDirectory]


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


def test_a_write_follows_its_own_flags(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123")
    file = OpenFile(1, os.open(tmp_path / "file", os.O_WRONLY))
    file.write(0, b"end", os.O_APPEND)
    file.write(1, b"ab", os.O_SYNC)
    file.write(3, b"c", os.O_DSYNC)
    file.close()

    assert (tmp_path / "file").read_bytes() == b"0abcend"


@pytest.mark.parametrize("direct_first", [False, True])
def test_direct_or_not_is_a_second_descriptor_made_once(tmp_path: Path, direct_first: bool) -> None:
    (tmp_path / "file").write_bytes(b"0" * BLOCK_BYTES)
    first, second = (os.O_DIRECT, 0) if direct_first else (0, os.O_DIRECT)
    kind = DirectFile if direct_first else OpenFile
    file = kind(1, os.open(tmp_path / "file", os.O_RDWR | first), first)
    before = descriptors_below(tmp_path)

    assert file.following(first | os.O_APPEND) is file
    other = file.following(second)
    assert file.following(second) is other
    assert other.direct is not direct_first
    assert bool(fcntl.fcntl(other.fd, fcntl.F_GETFL) & os.O_DIRECT) is not direct_first
    assert not os.get_inheritable(other.fd)
    other.write(0, b"1" * BLOCK_BYTES)
    assert file.read(0, BLOCK_BYTES) == b"1" * BLOCK_BYTES
    assert len(descriptors_below(tmp_path) - before) == 1

    file.close()
    assert descriptors_below(tmp_path) == set()
