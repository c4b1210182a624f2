"""Inodes in use: lent, pinned, closed; no descriptor is left over."""

import errno
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.passthrough.core.probe_inodes import Probe
from tests.support.tools.checks import descriptors_below, fails
from tests.support.tools.core_inodes import (
    BY_DESCRIPTOR,
    LIMIT_S,
    ROOT,
    Python,
    Serve,
    number_of,
    open_descriptors,
)

RECENT = 64


def test_an_inode_held_by_descriptor_lends_it(serve: Serve, source: Path) -> None:
    (source / "file").touch()
    probe = serve()
    nodeid = number_of(probe, b"file")
    loan, fd = probe.lend(nodeid)
    assert fd == (probe.inode(nodeid) or {})["fd"]
    probe.give_back(loan)
    probe.give_back(loan)
    assert os.fstat(fd).st_ino == (source / "file").stat().st_ino


def test_a_file_held_by_handle_is_opened_for_each_loan_once_others_were_used(
    by_handle: Probe, source: Path
) -> None:
    (source / "file").touch()
    nodeid = number_of(by_handle, b"file")
    in_use = [by_handle.lend(in_other)[0] for in_other in others(by_handle, source)]
    before = open_descriptors()
    loans = [by_handle.lend(nodeid) for _ in range(2)]
    assert len({fd for _, fd in loans}) == 2
    assert os.path.sameopenfile(*(fd for _, fd in loans))
    for loan, _ in loans:
        by_handle.give_back(loan)
        by_handle.give_back(loan)
    assert open_descriptors() == before
    for loan in in_use:
        by_handle.give_back(loan)


def others(by_handle: Probe, source: Path) -> list[int]:
    """Make as many files as stay open, and look them up."""
    for index in range(RECENT):
        (source / f"other-{index}").touch()
    return [number_of(by_handle, b"other-%d" % index) for index in range(RECENT)]


def test_a_directory_held_by_handle_stays_open(by_handle: Probe, source: Path) -> None:
    (source / "d").mkdir()
    before = open_descriptors()
    nodeid = number_of(by_handle, b"d")
    assert open_descriptors() == before + 1  # the lookup's own descriptor
    (one, fd), (other, again) = by_handle.lend(nodeid), by_handle.lend(nodeid)
    assert fd == again
    by_handle.give_back(one)
    assert os.fstat(fd).st_ino == (source / "d").stat().st_ino
    by_handle.give_back(other)
    by_handle.forget(nodeid)
    assert open_descriptors() == before


def test_only_so_many_directories_stay_open_those_used_last(by_handle: Probe, source: Path) -> None:
    count = RECENT + 20
    for index in range(count):
        (source / f"{index}").mkdir()
    before = open_descriptors()
    nodeids = [number_of(by_handle, b"%d" % index) for index in range(count)]
    assert open_descriptors() == before + RECENT

    def is_open(index: int) -> bool:
        return len(descriptors_below(source / f"{index}")) == 1

    assert [index for index in range(count) if is_open(index)] == [*range(20, count)]
    by_handle.give_back(by_handle.lend(nodeids[20])[0])
    by_handle.give_back(by_handle.lend(nodeids[0])[0])
    assert is_open(0)
    assert is_open(20)
    assert not is_open(21)
    for nodeid in nodeids:
        by_handle.forget(nodeid)
    assert open_descriptors() == before


def test_a_process_with_few_descriptors_keeps_fewer_directories_open(
    source: Path, python: Python
) -> None:
    for index in range(30):
        (source / f"{index}").mkdir()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (16 * 20, limits[1]))
    try:
        probe = Probe(os.fsencode(source), python, budget=0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    before = open_descriptors()
    for index in range(30):
        number_of(probe, b"%d" % index)
    assert open_descriptors() == before + 20
    probe.close()


def test_more_directories_may_be_lent_at_once_than_stay_open(
    by_handle: Probe, source: Path
) -> None:
    for index in range(RECENT + 10):
        (source / f"{index}").mkdir()
    nodeids = [number_of(by_handle, b"%d" % index) for index in range(RECENT + 10)]
    before = open_descriptors()
    loans = [by_handle.lend(nodeid) for nodeid in nodeids]
    found = [os.fstat(fd).st_ino for _, fd in loans]
    assert found == [(source / f"{index}").stat().st_ino for index in range(RECENT + 10)]
    assert open_descriptors() == before + 10
    for loan, _ in loans:
        by_handle.give_back(loan)
    assert open_descriptors() == before


def test_a_loan_outlasts_a_forget(by_handle: Probe, source: Path) -> None:
    (source / "d").mkdir()
    before = open_descriptors()
    nodeid = number_of(by_handle, b"d")
    loan, fd = by_handle.lend(nodeid)
    by_handle.forget(nodeid)
    assert os.fstat(fd).st_ino == (source / "d").stat().st_ino
    again = number_of(by_handle, b"d")
    other, own = by_handle.lend(again)
    assert fd != own
    by_handle.give_back(loan)
    assert os.fstat(own).st_ino == (source / "d").stat().st_ino
    by_handle.give_back(other)
    by_handle.forget(again)
    assert open_descriptors() == before


def test_a_file_deleted_on_the_host_is_stale(by_handle: Probe, source: Path) -> None:
    (source / "file").touch()
    nodeid = number_of(by_handle, b"file")
    (source / "file").unlink()
    others(by_handle, source)  # they stay open in its place
    before = open_descriptors()
    fails(errno.ESTALE, lambda: by_handle.lend(nodeid))
    fails(errno.ESTALE, lambda: by_handle.stat(nodeid))
    fails(errno.ESTALE, lambda: by_handle.changing(nodeid))
    fails(errno.ESTALE, lambda: by_handle.find_dot(nodeid))
    fails(errno.ESTALE, lambda: by_handle.check_reachable(nodeid))
    assert open_descriptors() == before


def test_an_inode_that_is_unknown_is_stale(serve: Serve) -> None:
    probe = serve(lacks_owners=True)
    fails(errno.ESTALE, lambda: probe.lend(7))
    fails(errno.ESTALE, lambda: probe.changing(7))
    fails(errno.ESTALE, lambda: probe.check_reachable(7))


def test_a_file_of_an_unmapped_owner_is_not_to_be_changed(serve: Serve, source: Path) -> None:
    """The first id of the container is 100,000 on the host."""
    for name, owner in (("root's", 0), ("theirs", 100_000)):
        (source / name).touch()
        os.chown(source / name, owner, 0)
    for budget in (0, BY_DESCRIPTOR):
        probe, lenient = serve(budget=budget, lacks_owners=True), serve(budget=budget)
        unmapped, mapped = number_of(probe, b"root's"), number_of(probe, b"theirs")
        before = open_descriptors()
        fails(errno.EPERM, lambda: probe.changing(unmapped))  # noqa: B023
        fails(errno.EPERM, lambda: probe.changing(ROOT))  # noqa: B023
        assert probe.changing(mapped)
        assert open_descriptors() == before
        assert lenient.changing(number_of(lenient, b"root's"))


def test_threads_lend_the_same_directories(by_handle: Probe, source: Path) -> None:
    """More than stay open, and each loan is of the right one."""
    for index in range(RECENT + 40):
        (source / f"{index}").mkdir()
    before = open_descriptors()
    nodeids = [number_of(by_handle, b"%d" % index) for index in range(RECENT + 40)]
    with ThreadPoolExecutor(4) as pool:
        walks = [pool.submit(by_handle.walk, nodeids[turn:], 20_000) for turn in range(3)]
        few = pool.submit(by_handle.walk, nodeids[:50], 20_000)
        assert [walk.result(LIMIT_S) for walk in (*walks, few)] == [0] * 4
    assert open_descriptors() == before + RECENT
    for nodeid in nodeids:
        by_handle.forget(nodeid)
    assert open_descriptors() == before


# Removed


@pytest.mark.parametrize("removal", ["unlink", "rmdir"])
def test_what_is_removed_keeps_its_number_until_it_is_forgotten(
    by_handle: Probe, source: Path, removal: str
) -> None:
    path = source / "old"
    path.mkdir() if removal == "rmdir" else path.touch()
    before = open_descriptors()
    nodeid = number_of(by_handle, b"old")
    number = path.stat().st_ino
    assert by_handle.remove(ROOT, b"old", getattr(path, removal)) == -1
    assert (by_handle.inode(nodeid) or {})["fd"] >= 0
    loan, fd = by_handle.lend(nodeid)
    assert os.fstat(fd).st_nlink == 0
    by_handle.give_back(loan)
    for index in range(50):
        (source / f"{index}").touch()
        assert (source / f"{index}").stat().st_ino != number
    by_handle.forget(nodeid)
    assert open_descriptors() == before


def test_a_removal_that_fails_or_leaves_a_link_pins_nothing(by_handle: Probe, source: Path) -> None:
    (source / "a").touch()
    os.link(source / "a", source / "b")
    nodeid = number_of(by_handle, b"a")
    before = open_descriptors()
    by_handle.remove(ROOT, b"a", lambda: False)
    by_handle.remove(ROOT, b"a", (source / "a").unlink)
    by_handle.remove(ROOT, b"missing", lambda: False)
    (source / "unknown").touch()
    by_handle.remove(ROOT, b"unknown", (source / "unknown").unlink)
    assert (by_handle.inode(nodeid) or {})["fd"] == -1
    assert open_descriptors() == before


def test_a_removal_holds_nothing_where_all_is_held_by_descriptor(
    serve: Serve, source: Path
) -> None:
    (source / "file").touch()
    probe = serve()
    number_of(probe, b"file")
    before = open_descriptors()
    held = []

    def unlink() -> None:
        held.append(open_descriptors())
        (source / "file").unlink()

    probe.remove(ROOT, b"file", unlink)
    assert held == [before]
    assert open_descriptors() == before


def test_a_pin_is_of_a_file_without_a_name_alone(by_handle: Probe, source: Path) -> None:
    fd = os.open(source, os.O_TMPFILE | os.O_RDWR)
    nodeid = by_handle.grant(os.open(f"/proc/self/fd/{fd}", os.O_PATH))[0]
    by_handle.pin(os.open(f"/proc/self/fd/{fd}", os.O_PATH))
    before = open_descriptors()
    by_handle.pin(os.open(f"/proc/self/fd/{fd}", os.O_PATH))  # it has one
    by_handle.pin(os.open(source, os.O_PATH))
    assert open_descriptors() == before
    os.close(fd)
    loan, lent = by_handle.lend(nodeid)
    assert os.fstat(lent).st_nlink == 0
    by_handle.give_back(loan)
