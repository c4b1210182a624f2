"""Files below mount points, and what lookups leave open."""

import errno
import os
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from tests.passthrough.core.probe_inodes import NOWHERE, Probe, mount_id
from tests.support.tools.checks import fails
from tests.support.tools.core_inodes import (
    ALL_HITS,
    BY_DESCRIPTOR,
    LIMIT_S,
    ROOT,
    Python,
    Serve,
    number_of,
    open_descriptors,
)
from tests.support.tools.mounts import MS_BIND

NO_HANDLES = 3
DIRECTORIES = 1


@pytest.fixture
def bound() -> Iterator[list[Path]]:
    """List the mount points of a test; they are unmounted after the test."""
    targets: list[Path] = []
    yield targets
    for target in reversed(targets):
        syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)


def bind(what: Path, where: Path, bound: list[Path]) -> None:
    syscalls.mount(os.fsencode(what), os.fsencode(where), b"", MS_BIND, b"")
    bound.append(where)


def mount(fstype: bytes, where: Path, bound: list[Path]) -> None:
    syscalls.mount(b"none", os.fsencode(where), fstype, 0, b"")
    bound.append(where)


@pytest.mark.parametrize("statx_first", [False, True])
@pytest.mark.parametrize("budget", [0, BY_DESCRIPTOR], ids=["handles", "descriptors"])
def test_a_bind_mount_is_another_directory_than_what_it_shows(
    serve: Serve, source: Path, bound: list[Path], statx_first: bool, budget: int
) -> None:
    (source / "a").mkdir()
    (source / "a/file").touch()
    (source / "b").mkdir()
    probe = serve(statx_first=statx_first, budget=budget)
    probe.set_hits(ALL_HITS)
    before = [number_of(probe, *path) for path in ((b"a",), (b"a", b"file"), (b"b",))]
    bind(source / "a", source / "b", bound)
    probe.set_hits(ALL_HITS)
    nodeid, shown, submount, _ = probe.find(ROOT, b"b")
    probe.set_hits(ALL_HITS)
    inside = probe.find(nodeid, b"file")
    assert submount
    assert not inside[2]
    assert shown == 1 << 47 | (source / "a").stat().st_ino
    assert inside[1] == 1 << 47 | (source / "a/file").stat().st_ino
    assert not {nodeid, inside[0]} & set(before)
    assert probe.find(nodeid, b"file") == inside
    assert [number_of(probe, *path) for path in ((b"a",), (b"a", b"file"))] == before[:2]


@pytest.mark.parametrize("statx_first", [False, True])
def test_a_file_bound_over_another_is_seen_at_once(
    serve: Serve, source: Path, bound: list[Path], statx_first: bool
) -> None:
    for name in ("plain", "over"):
        (source / name).touch()
    probe = serve(statx_first=statx_first)
    known = {number_of(probe, b"plain"), number_of(probe, b"over")}
    bind(source / "plain", source / "over", bound)
    probe.set_hits(ALL_HITS)
    nodeid, _, submount, _ = probe.find(ROOT, b"over")
    assert nodeid not in known
    assert submount
    assert probe.find(ROOT, b"plain")[0] in known


def test_a_mount_is_free_when_its_last_inode_is_forgotten(
    serve: Serve, source: Path, bound: list[Path]
) -> None:
    (source / "b").mkdir()
    mount(b"tmpfs", source / "b", bound)
    (source / "b/file").touch()
    for budget in (0, BY_DESCRIPTOR):
        probe = serve(budget=budget)
        before = open_descriptors()
        first = [probe.find(ROOT, b"b"), probe.find(number_of(probe, b"b"), b"file")]
        assert (probe.mounts()[1]["fd"] >= 0) == (budget == 0)
        assert probe.mounts()[1]["users"] == 2
        probe.forget(first[0][0], 2)
        with pytest.raises(OSError, match="busy"):
            syscalls.umount2(os.fsencode(source / "b"), 0)
        probe.forget(first[1][0])
        assert probe.mounts()[1]["fd"] == -1
        assert open_descriptors() == before
        again = [probe.find(ROOT, b"b"), probe.find(number_of(probe, b"b"), b"file")]
        assert [entry[1:3] for entry in again] == [entry[1:3] for entry in first]
        probe.close()
    syscalls.umount2(os.fsencode(bound.pop()), 0)


def test_a_volume_may_hide_what_is_mounted(serve: Serve, source: Path, bound: list[Path]) -> None:
    (source / "b").mkdir()
    (source / "file").touch()
    mount(b"tmpfs", source / "b", bound)
    bind(Path("/dev/null"), source / "file", bound)
    probe = serve(hides=True)
    before = open_descriptors()
    fails(errno.EXDEV, lambda: probe.find(ROOT, b"file"))
    assert open_descriptors() == before
    nodeid, _, submount, _ = probe.find(ROOT, b"b")
    assert not submount
    assert probe.is_hidden(nodeid)
    assert not probe.is_hidden(ROOT)
    fails(errno.EROFS, lambda: probe.changing(nodeid))
    assert probe.find_dot(nodeid)[0] == nodeid
    assert probe.find_dot(nodeid, parent=True)[0] == ROOT


def test_a_mount_without_handles_is_served_by_descriptors(
    by_handle: Probe, source: Path, bound: list[Path], python: Python
) -> None:
    """The log has one line of it."""
    for name in ("proc", "other", "tmpfs"):
        (source / name).mkdir()
    for where, fstype in (("proc", b"proc"), ("other", b"proc"), ("tmpfs", b"tmpfs")):
        mount(fstype, source / where, bound)
    (source / "tmpfs/file").touch()
    version, other = (number_of(by_handle, name, b"version") for name in (b"proc", b"other"))
    file = number_of(by_handle, b"tmpfs", b"file")
    assert not (by_handle.inode(version) or {})["by_handle"]
    assert not (by_handle.inode(other) or {})["by_handle"]
    assert (by_handle.inode(file) or {})["by_handle"]
    assert python.reports == [(NO_HANDLES, errno.EOPNOTSUPP, b"")]
    loan, fd = by_handle.lend(file)
    assert os.fstat(fd).st_ino == (source / "tmpfs/file").stat().st_ino
    by_handle.give_back(loan)


def test_a_source_without_handles_is_served_by_descriptors(serve: Serve, source: Path) -> None:
    (source / "file").touch()
    probe = serve(budget=0, handles=False)
    assert not (probe.inode(number_of(probe, b"file")) or {})["by_handle"]


def test_a_mount_of_passfs_is_not_entered(serve: Serve, source: Path, bound: list[Path]) -> None:
    (source / "own").mkdir()
    fuse_fd = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={fuse_fd},rootmode=40000,user_id=0,group_id=0".encode()
    syscalls.mount(b"own", os.fsencode(source / "own"), b"fuse.passfs", 0, data)
    bound.append(source / "own")
    probe = serve(statx_first=True)
    probe.set_hits(ALL_HITS)
    before = open_descriptors()
    fails(errno.ELOOP, lambda: probe.find(ROOT, b"own"))
    assert open_descriptors() == before
    os.close(fuse_fd)


def test_the_same_mount_found_by_threads_is_one(
    serve: Serve, source: Path, bound: list[Path]
) -> None:
    (source / "b").mkdir()
    mount(b"tmpfs", source / "b", bound)
    (source / "b/file").touch()
    probe = serve(budget=0)
    before = open_descriptors()
    start = threading.Barrier(4, timeout=LIMIT_S)

    def work() -> None:
        start.wait()
        for _ in range(200):
            nodeid = probe.grant(os.open(source / "b", os.O_PATH), place=NOWHERE)[0]
            probe.forget(nodeid)

    with ThreadPoolExecutor(4) as pool:
        for ended in [pool.submit(work) for _ in range(4)]:
            ended.result(LIMIT_S)
    assert probe.live() == [ROOT]
    assert open_descriptors() == before
    assert [found["users"] for found in probe.mounts()] == [1, 0]


# Descriptors


def test_a_descriptor_that_is_not_counted_is_closed(serve: Serve, source: Path) -> None:
    (source / "file").touch()
    for budget in (0, BY_DESCRIPTOR):
        probe = serve(budget=budget)
        before = open_descriptors()
        fails(errno.ENFILE, lambda: probe.grant(os.open(source, os.O_PATH), place=400))  # noqa: B023
        fails(errno.EBADF, lambda: probe.grant(-1))  # noqa: B023
        assert open_descriptors() == before
        nodeid = probe.grant(os.open(source / "file", os.O_PATH))[0]
        assert probe.grant(os.open(source / "file", os.O_PATH), place=NOWHERE)[0] == nodeid
        probe.forget(nodeid, 2)
        assert open_descriptors() == before


@pytest.mark.parametrize("places", [1, 3], ids=["mount", "device"])
def test_a_mount_without_room_in_the_table_is_left_again(
    serve: Serve, source: Path, bound: list[Path], places: int
) -> None:
    (source / "b").mkdir()
    mount(b"tmpfs", source / "b", bound)
    for budget in (0, BY_DESCRIPTOR):
        probe = serve(budget=budget, places=places)
        probe.fill_places()
        before = open_descriptors()
        fails(errno.ENFILE, lambda: probe.find(ROOT, b"b"))  # noqa: B023
        assert open_descriptors() == before
        assert all(found["users"] == (found["fd"] >= 0) for found in probe.mounts()[1:])
    syscalls.umount2(os.fsencode(bound.pop()), 0)


def test_lookups_fail_and_leak_nothing_where_descriptors_run_out(
    serve: Serve, source: Path, bound: list[Path]
) -> None:
    for directory in ("d", "b"):
        (source / directory).mkdir()
    mount(b"tmpfs", source / "b", bound)
    probe = serve(budget=0)
    nodeid = number_of(probe, b"d")
    probe.forget(nodeid)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_descriptors()
    numbers = set()
    for spare in range(4):
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + spare, limits[1]))
        for name in (b"d", b"b"):
            try:
                probe.forget(probe.find(ROOT, name)[0])
            except OSError as error:
                numbers.add(error.errno)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest + spare, limits[1]))
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert open_descriptors() == before
    assert numbers <= {errno.EMFILE}


def test_close_leaves_nothing_open(serve: Serve, source: Path, bound: list[Path]) -> None:
    for name in ("d", "b"):
        (source / name).mkdir()
    (source / "file").touch()
    mount(b"tmpfs", source / "b", bound)
    for budget in (0, 2, BY_DESCRIPTOR):
        before = open_descriptors()
        probe = serve(budget=budget)
        nodeids = [number_of(probe, name) for name in (b"d", b"b", b"file")]
        probe.remove(ROOT, b"file", (source / "file").unlink)
        probe.add_open(nodeids[2], os.dup(0), os.dup(0))
        probe.add_open(nodeids[2], os.dup(0), -1)
        probe.add_open(nodeids[0], os.dup(0), -1, table=DIRECTORIES)
        probe.forget(nodeids[0])
        assert probe.close() == [-1] * 4
        assert open_descriptors() == before
        probe.close()
        (source / "file").touch()


@pytest.mark.parametrize("budget", [0, BY_DESCRIPTOR], ids=["handles", "descriptors"])
def test_the_file_of_callers_without_an_open_goes_with_the_inode(
    serve: Serve, source: Path, budget: int
) -> None:
    (source / "file").touch()
    probe = serve(budget=budget)
    before = open_descriptors()
    nodeid = number_of(probe, b"file")
    number_of(probe, b"file")
    probe.add_open(nodeid, os.dup(0), os.dup(0), note=True)
    probe.forget(nodeid)
    assert open_descriptors() >= before + 2
    probe.forget(nodeid)
    assert probe.inode(nodeid) is None
    assert open_descriptors() == before


def test_the_mount_of_a_descriptor_is_found(source: Path) -> None:
    fd = os.open(source, os.O_PATH)
    assert mount_id(fd) == syscalls.mount_id(fd)
    os.close(fd)
