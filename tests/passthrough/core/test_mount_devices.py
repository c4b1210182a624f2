"""What lies on which mount: bind mounts of one file system stay apart, whenever they come."""

import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.inodes import ROOT
from passthrough.linux import syscalls
from passthrough.options.choices import InodeFileHandles
from tests.support.tools.direct import listing, number_of
from tests.support.tools.mounts import MS_BIND
from tests.support.tools.options import effective

MS_REMOUNT = 32
LIMIT_S = 30.0


@pytest.fixture
def bound() -> Iterator[list[Path]]:
    """Where a test has mounted something, which goes with the test."""
    targets: list[Path] = []
    yield targets
    for target in reversed(targets):
        syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)


@pytest.fixture(params=InodeFileHandles)
def served(source: Path, request: pytest.FixtureRequest) -> Iterator[PassthroughFs]:
    (source / "a/sub").mkdir(parents=True)
    (source / "a/file").touch()
    (source / "b").mkdir()
    (source / "plain").touch()
    config = effective(inode_file_handles=request.param)
    fs = PassthroughFs(config, os.open(source, os.O_PATH))
    yield fs
    fs.close()


def bind(what: Path, where: Path, bound: list[Path], flags: int = 0) -> None:
    syscalls.mount(os.fsencode(what), os.fsencode(where), b"", MS_BIND, b"")
    bound.append(where)
    if flags:
        syscalls.mount(b"", os.fsencode(where), b"", MS_BIND | MS_REMOUNT | flags, b"")


def test_a_bind_mount_is_another_directory_than_what_it_shows(
    served: PassthroughFs, source: Path, bound: list[Path]
) -> None:
    """Also one that is mounted while the kernel knows both places already."""
    paths = ((b"a",), (b"a", b"sub"), (b"a", b"file"))
    before = [number_of(served, *path) for path in paths]
    number_of(served, b"b")

    bind(source / "a", source / "b", bound)

    assert [number_of(served, *path) for path in paths] == before
    assert before == [os.stat(source / os.fsdecode(b"/".join(path))).st_ino for path in paths]
    below = [number_of(served, b"b", *path[1:]) for path in paths]
    assert len({*before, *below}) == 6
    assert [number_of(served, b"b", *path[1:]) for path in paths] == below


def test_a_file_bound_over_another_is_seen_at_once(
    served: PassthroughFs, source: Path, bound: list[Path]
) -> None:
    (source / "over").touch()
    plain, over = number_of(served, b"plain"), number_of(served, b"over")

    bind(source / "plain", source / "over", bound)

    assert number_of(served, b"over") not in {plain, over}
    assert number_of(served, b"plain") == plain


def test_a_read_only_bind_mount_stays_read_only(
    served: PassthroughFs, source: Path, bound: list[Path]
) -> None:
    """And the directory that it shows stays writable."""
    bind(source / "a", source / "b", bound, syscalls.MS_RDONLY)
    through_b, through_a = number_of(served, b"b", b"file"), number_of(served, b"a", b"file")

    served.release(served.open(through_a, os.O_RDWR))
    with pytest.raises(OSError, match="Read-only"):
        served.open(through_b, os.O_RDWR)


def test_a_mount_that_went_leaves_the_directory_beneath(
    served: PassthroughFs, source: Path, bound: list[Path]
) -> None:
    beneath = number_of(served, b"b")
    bind(source / "a", source / "b", bound)
    above = number_of(served, b"b")
    served.forget(above, 1)
    syscalls.umount2(os.fsencode(bound.pop()), syscalls.MNT_DETACH)

    assert number_of(served, b"b") == beneath


def test_another_file_system_below_the_source_keeps_its_own_numbers(
    served: PassthroughFs, source: Path, bound: list[Path]
) -> None:
    syscalls.mount(b"none", os.fsencode(source / "b"), b"tmpfs", 0, b"")
    bound.append(source / "b")
    (source / "b/file").touch()

    inside = number_of(served, b"b", b"file")

    assert inside >> 47 == 1
    assert inside & (1 << 47) - 1 == (source / "b/file").stat().st_ino
    assert served.getattr(inside).stat.st_dev == os.stat(source / "b").st_dev


def test_the_mount_is_asked_for_only_where_one_is_entered(
    served: PassthroughFs, source: Path, bound: list[Path]
) -> None:
    bind(source / "a", source / "b", bound)
    with patch.object(syscalls, "mount_id", wraps=syscalls.mount_id) as asked:
        number_of(served, b"a", b"file")
        assert asked.call_count == 0
        number_of(served, b"b", b"file")
        number_of(served, b"b", b"sub")
        assert asked.call_count == 4  # for each: is it passfs, and which mount is it
    assert set(listing(served)) >= {b"a", b"b"}


def test_a_mount_is_free_when_its_last_inode_is_forgotten(
    served: PassthroughFs, source: Path, bound: list[Path]
) -> None:
    """And when it is used again, its files have the numbers that they had."""
    syscalls.mount(b"none", os.fsencode(source / "b"), b"tmpfs", 0, b"")
    (source / "b/file").touch()
    numbers = [number_of(served, b"b"), number_of(served, b"b", b"file")]
    served.forget(numbers[0], 2)
    busy = pytest.raises(OSError, match="busy")
    with busy:
        syscalls.umount2(os.fsencode(source / "b"), 0)
    served.forget(numbers[1], 1)

    again = [number_of(served, b"b"), number_of(served, b"b", b"file")]
    for number, count in zip(again, (2, 1), strict=True):
        served.forget(number, count)
    syscalls.umount2(os.fsencode(source / "b"), 0)

    assert again == numbers
    assert bound == []


def test_two_devices_on_one_mount_stay_apart(served: PassthroughFs, source: Path) -> None:
    """As the subvolumes of btrfs: nothing is mounted there, but the numbers begin anew."""
    table = served.inodes
    attributes = os.stat(source / "plain")
    fields = list(attributes)[:10]
    fields[stat.ST_DEV] += 1
    fds = [os.open(source / "plain", os.O_PATH) for _ in range(3)]

    here = table.grant(fds[0], attributes, table.root.place)
    there = table.grant(fds[1], os.stat_result(fields), table.root.place)
    there_too = table.grant(fds[2], os.stat_result(fields), there.place)

    assert here is not there
    assert there is there_too
    assert there.number == 1 << 47 | here.number
    assert there.place.mount is here.place.mount


def test_the_same_mount_found_by_two_threads_is_one(
    served: PassthroughFs, source: Path, bound: list[Path]
) -> None:
    bind(source / "a", source / "b", bound)
    before = len(os.listdir("/proc/self/fd"))
    threads, rounds = 4, 50
    start = threading.Barrier(threads, timeout=LIMIT_S)

    def work() -> None:
        start.wait()
        for _ in range(rounds):
            mount = served.lookup(ROOT, b"b").inode_number
            file = served.lookup(mount, b"file").inode_number
            assert served.getattr(file).number == file
            served.forget(file, 1)
            served.forget(mount, 1)

    with ThreadPoolExecutor(threads) as pool:
        for ended in [pool.submit(work) for _ in range(threads)]:
            ended.result(LIMIT_S)

    assert len(served.inodes) == 1
    assert len(os.listdir("/proc/self/fd")) == before
