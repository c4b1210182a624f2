import errno
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from passthrough.core.inode_file import Inode
from passthrough.core.inodes import ROOT, InodeTable
from passthrough.linux import fdpath
from passthrough.options.choices import InodeFileHandles
from tests.support.tools.direct import descriptor_of, descriptors_below

DEVICE_BIT = 47
COUNTED = 1 << 55
LIMIT_S = 30.0


def opened(path: Path | str) -> tuple[int, os.stat_result]:
    """What `grant` takes: an O_PATH descriptor and its attributes."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    return fd, os.fstat(fd)


def attributes(number: int, device: int, mode: int = stat.S_IFREG) -> os.stat_result:
    """What fstat(2) would say of a file with this identity."""
    return os.stat_result((mode, number, device, 1, 0, 0, 0, 0, 0, 0))


@pytest.fixture
def table(tmp_path: Path) -> Iterator[InodeTable]:
    table = InodeTable(os.open(tmp_path, os.O_PATH), InodeFileHandles.NEVER)
    yield table
    table.close()


class Lookups(RuleBasedStateMachine):
    """Grants and forgets in any order, beside a model that only counts.

    The kernel never gives back more than it was granted, but a mistake there must not close a
    descriptor twice: `too_much` is a rule as well.
    """

    FILES = 4

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.paths = [Path(self.directory.name, str(index)) for index in range(self.FILES)]
        for path in self.paths:
            path.touch()
        self.table = InodeTable(os.open(self.directory.name, os.O_PATH), InodeFileHandles.NEVER)
        self.counts: dict[int, int] = {}
        self.numbers = {path.stat().st_ino: path for path in self.paths}

    def known(self) -> list[int]:
        """The numbers that are granted, in the order of the files: the host's differ each time."""
        return [number for number in self.numbers if number in self.counts]

    @rule(index=st.integers(0, FILES - 1))
    def grant(self, index: int) -> None:
        fd, found = opened(self.paths[index])
        inode = self.table.grant(fd, found)
        assert inode.number == found.st_ino
        assert inode.kind == stat.S_IFREG
        self.counts[inode.number] = self.counts.get(inode.number, 0) + 1

    @rule(old=st.integers(0, FILES - 1), new=st.integers(0, FILES - 1))
    def rename(self, old: int, new: int) -> None:
        """Names are nothing to an inode."""
        spare = Path(self.directory.name, "spare")
        self.paths[old].rename(spare)
        if old != new:
            self.paths[new].rename(self.paths[old])
        spare.rename(self.paths[new])

    @precondition(lambda self: self.counts)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.known()))
        count = data.draw(st.integers(1, self.counts[number]))
        self.table.forget(number, count)
        self.counts[number] -= count
        if not self.counts[number]:
            del self.counts[number]

    @precondition(lambda self: self.counts)
    @rule(data=st.data())
    def too_much(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.known()))
        self.table.forget(number, self.counts.pop(number) + 1)
        self.table.forget(number, 1)

    @rule(count=st.integers(1, 10))
    def forget_root(self, count: int) -> None:
        self.table.forget(ROOT, count)

    @invariant()
    def the_table_holds_what_was_granted(self) -> None:
        assert len(self.table) == 1 + len(self.counts)
        assert {n: self.table[n].lookups for n in self.counts} == self.counts
        assert self.table[ROOT] is self.table.root
        for number in self.numbers:
            if number not in self.counts:
                with pytest.raises(OSError, match="Stale"):
                    self.table[number]

    @invariant()
    def one_descriptor_for_each_and_no_other(self) -> None:
        held = {descriptor_of(self.table[number]) for number in self.counts}
        assert {os.fstat(fd).st_ino for fd in held} == set(self.counts)
        assert descriptors_below(Path(self.directory.name)) == held | {
            descriptor_of(self.table.root)
        }

    def teardown(self) -> None:
        self.table.close()
        assert descriptors_below(Path(self.directory.name)) == set()
        self.directory.cleanup()


def test_lookups_are_counted() -> None:
    run_state_machine_as_test(
        Lookups, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )


def test_one_file_is_one_inode_by_whatever_name(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.link(tmp_path / "a", tmp_path / "b")

    assert table.grant(*opened(tmp_path / "a")) is table.grant(*opened(tmp_path / "b"))


def test_the_path_reaches_the_file_behind_the_descriptor(table: InodeTable, tmp_path: Path) -> None:
    """After a rename, and of a symlink the symlink itself."""
    (tmp_path / "a").symlink_to("nowhere")
    inode = table.grant(*opened(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")

    os.chown(fdpath.of(descriptor_of(inode)), 41_001, 41_002)

    assert (tmp_path / "b").lstat().st_uid == 41_001
    assert inode.kind == stat.S_IFLNK


def test_a_forgotten_number_is_stale(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    number = table.grant(*opened(tmp_path / "a")).number
    table.forget(number, 1)

    with pytest.raises(OSError, match="Stale") as stale:
        table[number]

    assert stale.value.errno == errno.ESTALE


def test_the_source_is_the_root_even_where_it_is_found_by_a_name(
    table: InodeTable, tmp_path: Path
) -> None:
    """Below a bind mount of the source, a lookup comes upon it again."""
    inode = table.grant(*opened(tmp_path))

    assert inode is table.root
    assert inode.number == ROOT
    assert inode.host_number == tmp_path.stat().st_ino
    table.forget(ROOT, 2)
    assert table[ROOT].lookups > 0


def test_numbers_on_the_sources_device_are_the_hosts(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "a").touch()

    assert table.grant(*opened(tmp_path / "a")).number == (tmp_path / "a").stat().st_ino


def test_numbers_on_other_devices_carry_the_device(table: InodeTable, tmp_path: Path) -> None:
    """/dev/shm and /dev are devices of their own; the first that is seen is the first in line."""
    assert len({os.stat(path).st_dev for path in (tmp_path, "/dev/shm", "/dev")}) == 3

    shm, dev = (table.grant(*opened(path)) for path in ("/dev/shm", "/dev"))

    assert shm.number == 1 << DEVICE_BIT | os.stat("/dev/shm").st_ino
    assert dev.number == 2 << DEVICE_BIT | os.stat("/dev").st_ino


def test_packed_numbers_carry_a_device_from_1_on_and_the_sources_too(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    table = InodeTable(os.open(tmp_path, os.O_PATH), InodeFileHandles.NEVER, packed=True)
    try:
        inodes = [table.grant(*opened(path)) for path in (tmp_path / "a", "/dev/shm", "/dev")]
        far = table.grant(opened(tmp_path)[0], attributes(1 << DEVICE_BIT, tmp_path.stat().st_dev))

        assert [inode.number for inode in inodes] == [
            device << DEVICE_BIT | inode.host_number for device, inode in enumerate(inodes, 1)
        ]
        assert far.number == COUNTED | 1
        assert table.root.number == ROOT
        assert table.shown_number(table.root) == 1 << DEVICE_BIT | tmp_path.stat().st_ino
        assert table.shown_neighbour(far, 5) == 5
    finally:
        table.close()


@pytest.mark.parametrize("host_number", [0, ROOT, 1 << DEVICE_BIT, (1 << 64) - 1])
def test_numbers_that_fit_nowhere_are_counted(
    table: InodeTable, tmp_path: Path, host_number: int
) -> None:
    """0 says `no such name` in a reply, 1 is the root, and the others reach into device bits."""
    device = tmp_path.stat().st_dev

    first = table.grant(opened(tmp_path)[0], attributes(host_number, device))
    again = table.grant(opened(tmp_path)[0], attributes(host_number, device))
    second = table.grant(opened(tmp_path)[0], attributes((1 << 63) + 1, device))

    assert first is again
    assert [first.number, second.number] == [COUNTED | 1, COUNTED | 2]
    assert first.host_number == host_number


def test_devices_beyond_the_256th_are_counted(table: InodeTable, tmp_path: Path) -> None:
    inodes = [
        table.grant(opened(tmp_path)[0], attributes(5, tmp_path.stat().st_dev + device))
        for device in range(258)
    ]

    numbers = [inode.number for inode in inodes]
    assert numbers[:256] == [device << DEVICE_BIT | 5 for device in range(256)]
    assert numbers[256:] == [COUNTED | 1, COUNTED | 2]


def test_a_number_means_one_file_whatever_the_hosts_numbers(
    table: InodeTable, tmp_path: Path
) -> None:
    edges = [2, (1 << DEVICE_BIT) - 1, 1 << DEVICE_BIT, COUNTED | 1, COUNTED, (1 << 64) - 1]
    devices = [tmp_path.stat().st_dev + offset for offset in range(3)]

    inodes: list[Inode] = [
        table.grant(opened(tmp_path)[0], attributes(number, device))
        for number in edges
        for device in devices
    ]

    assert len({inode.number for inode in inodes}) == len(edges) * len(devices)
    assert all(0 < inode.number < 1 << 63 for inode in inodes)


class UnderLock(dict[Any, Inode]):
    """A dictionary that is changed and asked only by whoever holds the lock of its table."""

    def __init__(self, table: InodeTable, content: dict[Any, Inode]) -> None:
        super().__init__(content)
        self.lock = table._lock

    def get(self, key: Any, default: Any = None) -> Any:
        assert self.lock.locked()
        return super().get(key, default)

    def __setitem__(self, key: Any, value: Inode) -> None:
        assert self.lock.locked()
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        assert self.lock.locked()
        super().__delitem__(key)


def test_asking_and_changing_are_one_step(table: InodeTable, tmp_path: Path) -> None:
    """Two threads that find a file unknown would both make its inode, and one be lost."""
    table._by_identity = UnderLock(table, table._by_identity)
    table._by_number = UnderLock(table, table._by_number)
    (tmp_path / "a").touch()

    for _ in range(2):
        inode = table.grant(*opened(tmp_path / "a"))
    table.forget(inode.number, 2)

    assert len(table) == 1
    assert not table._lock.locked()


def test_counts_balance_with_many_threads(table: InodeTable, tmp_path: Path) -> None:
    """Threads that grant and forget the same few files at once."""
    threads, rounds = 4, 200
    paths = [tmp_path / str(index) for index in range(3)]
    for path in paths:
        path.touch()
    start = threading.Barrier(threads, timeout=LIMIT_S)

    def work() -> None:
        start.wait()
        for _ in range(rounds):
            for path in paths:
                inode = table.grant(*opened(path))
                table.forget(inode.number, 1)
        start.wait()
        for path in paths:
            table.grant(*opened(path))

    with ThreadPoolExecutor(threads) as pool:
        for ended in [pool.submit(work) for _ in range(threads)]:
            ended.result(LIMIT_S)

    assert [table[path.stat().st_ino].lookups for path in paths] == [threads] * 3
    assert len(descriptors_below(tmp_path)) == 1 + len(paths)
    for path in paths:
        table.forget(path.stat().st_ino, threads)
    assert len(table) == 1


def test_close_closes_everything_once(tmp_path: Path) -> None:
    table = InodeTable(os.open(tmp_path, os.O_PATH), InodeFileHandles.NEVER)
    (tmp_path / "a").touch()
    table.grant(*opened(tmp_path / "a"))

    table.close()
    table.close()

    assert len(table) == 0
    assert descriptors_below(tmp_path) == set()
