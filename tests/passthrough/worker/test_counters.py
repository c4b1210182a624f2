"""counters.py: the requests that a volume has served, read while threads count."""

import errno
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from passthrough.core.counters import count_in
from passthrough.session.abi import Opcode
from passthrough.worker import control, counters
from tests.passthrough.core.probe_counters import LAST_BUCKET, SIZE, bucket, count_many
from tests.support.tools.counting import counting, found, numbers

ROWS = 16
THREADS, TIMES = 4, 50_000
SMALL_KIB = 16


@pytest.fixture
def fd() -> Iterator[int]:
    with counting() as fd:
        yield fd


def test_the_core_counts_where_the_reader_reads(fd: int) -> None:
    assert counters.END - counters.AT == SIZE
    count_many(0, Opcode.LOOKUP, 0, 3)
    count_many(ROWS - 1, Opcode.COPY_FILE_RANGE_64, errno.EIO, 2)

    assert numbers(fd) == {"LOOKUP": 3, "COPY_FILE_RANGE_64": 2}
    assert found(fd).errors == {"EIO": 2}


def test_each_bucket_has_the_times_below_its_bound() -> None:
    bounds = counters.bounds_ns()
    assert len(bounds) == LAST_BUCKET
    for number, bound in enumerate(bounds):
        assert (bucket(bound - 1), bucket(bound)) == (number, number + 1)
    assert (bucket(0), bucket((1 << 64) - 1)) == (0, LAST_BUCKET)


def test_a_time_is_in_the_sum_and_in_one_bucket(fd: int) -> None:
    count_many(1, Opcode.READ, 0, 1)

    read = found(fd).operations["READ"]
    assert sum(read.buckets) == read.requests == 1
    assert read.buckets[bucket(read.ns)] == 1


def test_what_the_core_does_not_know_counts_as_unknown(fd: int) -> None:
    count_many(1, 4096, 511, 1)
    count_many(1, 1 << 30, 287, 1)

    assert numbers(fd) == {"0": 2}
    assert found(fd).errors == {"0": 1, "287": 1}


@pytest.mark.parametrize("rows", [range(THREADS), [1, 1 + ROWS, 1, 1 + ROWS]])
def test_no_request_is_lost_while_threads_count_and_a_reader_reads(
    fd: int, rows: list[int]
) -> None:
    """Threads beyond the rows share them."""
    with ThreadPoolExecutor(THREADS) as pool:
        done = [pool.submit(count_many, row, Opcode.LOOKUP, errno.ENOENT, TIMES) for row in rows]
        seen = [numbers(fd).get("LOOKUP", 0)]
        while not all(each.done() for each in done):
            seen.append(numbers(fd).get("LOOKUP", 0))

    assert all(before <= after for before, after in pairwise(seen))
    assert numbers(fd) == {"LOOKUP": THREADS * TIMES}
    assert found(fd).errors == {"ENOENT": THREADS * TIMES}


def test_a_reader_allocates_no_page(fd: int) -> None:
    count_many(1, Opcode.LOOKUP, 0, 1)
    before = os.fstat(fd).st_blocks

    numbers(fd)

    assert os.fstat(fd).st_blocks == before <= SMALL_KIB * 2


def test_any_number_can_be_read(fd: int) -> None:
    """A worker that is compromised may have written it."""
    os.pwrite(fd, b"\xff" * SIZE, counters.AT)

    present = found(fd)

    assert present.operations["LOOKUP"].ns == ROWS * ((1 << 64) - 1)
    assert present.operations.keys() >= {each.name for each in Opcode if each < 54}
    os.pwrite(fd, b"\xff" * 512, 0)
    assert counters.read(fd) is None


def test_an_older_page_has_no_counters(fd: int) -> None:
    older = os.memfd_create("older")
    os.pwrite(older, os.pread(fd, control.SIZE, 0), 0)

    assert counters.read(older) is None
    page = control.Page(older)
    assert not counters.exist(page.memory)
    after = control.Page.private()
    after.take_history(page)
    for each in (page, after):
        each.close()
    os.close(older)


def test_counters_of_another_version_are_not_read(fd: int) -> None:
    os.pwrite(fd, bytes([counters.VERSION + 1]), counters.VERSION_AT)

    assert counters.read(fd) is None


def test_the_counters_of_another_page_are_copied(fd: int) -> None:
    count_many(3, Opcode.LOOKUP, errno.EIO, 5)
    before, after_fd = control.Page(fd), control.make()
    after = control.Page(after_fd)

    after.take_history(before)

    assert found(after_fd) == found(fd)
    assert os.fstat(after_fd).st_blocks <= SMALL_KIB * 2
    for page in (before, after):
        page.close()
    os.close(after_fd)


def test_memory_that_is_too_small_is_refused() -> None:
    with mmap.mmap(-1, SIZE) as memory, pytest.raises(ValueError, match="no room"):
        count_in(memory, 8)
