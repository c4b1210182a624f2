import errno
from collections.abc import Callable

import pytest

from tests.passthrough.core.probe_tables import SIZES, Probe
from tests.support.tools.core_tables import DIRECTORIES, FILES, ROOT, check, named

UNDECIDED = -1
COUNTED = 1 << 55


def test_slots_have_the_planned_sizes() -> None:
    assert SIZES == (64, 32)


def test_an_inode_lives_from_its_first_grant_to_its_last_forget() -> None:
    probe = Probe()
    made, nodeid, shown = named(probe.grant(70, 10))
    assert (made, shown) == ("taken", 70)
    assert probe.grant(70, 11) == ("known", nodeid, shown)
    assert probe.forget(nodeid) is None
    assert probe.find(70) == ("known", nodeid, shown)
    assert probe.forget(nodeid) == (10, -1)
    assert probe.find(70) is None
    assert probe.inode(nodeid) is None
    assert probe.forget(nodeid) is None
    check(probe)


def test_a_slot_that_is_used_again_has_another_nodeid() -> None:
    probe = Probe()
    nodeids = set()
    for fd in range(5):
        _, nodeid, _ = named(probe.grant(70, fd))
        nodeids.add(nodeid)
        assert nodeid & 0xFFFFFFFF == 2
        assert probe.forget(nodeid) == (fd, -1)
    assert len(nodeids) == 5


def test_more_forgets_than_grants_do_no_harm() -> None:
    probe = Probe()
    _, nodeid, _ = named(probe.grant(70, 10))
    assert probe.forget(nodeid, 1 << 63) == (10, -1)
    assert probe.forget(nodeid, 1) is None
    check(probe)


def test_the_root_is_never_counted_or_forgotten() -> None:
    probe = Probe(ino=2)
    assert probe.grant(2, 10) == ("known", ROOT, 2)
    assert probe.forget(ROOT, 100) is None
    assert (probe.inode(ROOT) or {})["lookups"] == 1


@pytest.mark.parametrize("nodeid", [0, 3, 1 << 32, 2**64 - 1, 1 << 20, (1 << 32) | ROOT])
def test_nodeids_that_name_nothing_are_refused(nodeid: int) -> None:
    probe = Probe(inodes=1 << 10)
    assert probe.inode(nodeid) is None
    assert probe.forget(nodeid) is None
    assert fails(lambda: probe.open(nodeid, 5)) == errno.ESTALE


def fails(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


# By file handle


def test_beyond_the_budget_inodes_are_held_by_handle() -> None:
    probe = Probe(budget=1)
    named(probe.grant(70, 10))
    assert not probe.some_by_handle()
    assert probe.grant(71, 11) == "needs handle"
    made, nodeid, _ = named(probe.grant(71, 11, handle=b"seventy-one"))
    assert made == "by handle"
    assert probe.some_by_handle()
    inode = probe.inode(nodeid) or {}
    assert (inode["descriptor"], inode["handle"], inode["mount_fd"]) == (-1, b"seventy-one", 999)
    assert probe.grant(71, 12) == "needs handle"
    assert probe.grant(71, 12, handle=b"seventy-one") == ("known", nodeid, 71)
    assert probe.forget(nodeid, 2) == (-1, -1)
    check(probe)


@pytest.mark.parametrize("handle", [b"", b"x" * 25])
def test_a_file_without_a_handle_that_fits_is_held_by_descriptor(handle: bytes) -> None:
    probe = Probe(budget=0, handle_bytes=24)
    assert named(probe.grant(70, 10, handle=handle))[0] == "taken"
    assert named(probe.grant(71, 11, handle=b"x" * 24))[0] == "by handle"
    assert not probe.pin(71, 12, handle)
    check(probe)


def test_a_file_with_a_reused_number_is_an_inode_of_its_own() -> None:
    probe = Probe(budget=0)
    _, former, _ = named(probe.grant(70, 10, handle=b"former"))
    made, later, shown = named(probe.grant(70, 11, handle=b"later"))
    assert (made, shown) == ("by handle", COUNTED | 1)
    assert later != former
    assert (probe.inode(former) or {})["replaced"]
    assert probe.find(70) == ("needs handle", later, shown)
    assert probe.forget(later) == (-1, -1)
    assert probe.find(70) is None
    assert probe.inode(former)
    assert named(probe.grant(70, 12, handle=b"third"))[2] == COUNTED | 2
    probe.forget(former)
    probe.forget(probe.find(70)[1])  # type: ignore[index]
    assert named(probe.grant(70, 13, handle=b"fourth"))[2] == 70


def test_a_removed_file_is_pinned_once_and_by_its_own_handle() -> None:
    probe = Probe(budget=0)
    _, nodeid, _ = named(probe.grant(70, 10, handle=b"one"))
    assert not probe.pin(70, 20, b"two")
    assert not probe.pin(71, 20, b"one")
    assert probe.pin(70, 21, b"one")
    assert not probe.pin(70, 22, b"one")
    assert (probe.inode(nodeid) or {})["descriptor"] == 21
    assert probe.forget(nodeid) == (21, -1)


def test_an_inode_held_by_descriptor_is_not_pinned() -> None:
    probe = Probe()
    named(probe.grant(70, 10))
    assert not probe.pin(70, 20, b"one")


def test_only_so_many_removed_files_keep_a_descriptor() -> None:
    probe = Probe(budget=0, pins=1)
    first, second = (named(probe.grant(ino, 10, handle=b"x"))[1] for ino in (70, 71))
    assert probe.pin(70, 20, b"x")
    assert not probe.pin(71, 21, b"x")
    assert probe.forget(first) == (20, -1)
    assert probe.pin(71, 21, b"x")
    assert probe.forget(second) == (21, -1)
    check(probe)


# statx first


def test_a_lookup_without_a_descriptor_counts_only_what_was_there_before() -> None:
    probe = Probe(budget=1)
    assert fails(lambda: probe.grant(70, -1)) == errno.ENOENT
    before = probe.created()
    assert fails(lambda: probe.grant(70, -1, since=before)) == errno.ESTALE
    _, nodeid, _ = named(probe.grant(70, 10))
    assert fails(lambda: probe.grant(70, -1, since=before)) == errno.ESTALE
    assert probe.grant(70, -1, since=probe.created()) == ("known", nodeid, 70)
    assert (probe.inode(nodeid) or {})["lookups"] == 2
    before = probe.created()
    probe.forget(nodeid, 2)
    _, later, _ = named(probe.grant(70, 11))
    assert fails(lambda: probe.grant(70, -1, since=before)) == errno.ESTALE
    assert (probe.inode(later) or {})["lookups"] == 1
    check(probe)


def test_a_lookup_without_a_descriptor_does_not_believe_in_handles() -> None:
    probe = Probe(budget=0)
    named(probe.grant(70, 10, handle=b"x"))
    assert fails(lambda: probe.grant(70, -1, since=probe.created())) == errno.ESTALE
    assert fails(lambda: probe.grant(70, -1)) == errno.ENOENT


def test_the_count_of_inodes_may_begin_anew() -> None:
    probe = Probe()
    probe.set_created(2**32 - 2)
    nodeids = [named(probe.grant(ino, 10))[1] for ino in range(70, 74)]
    assert [(probe.inode(nodeid) or {})["born"] for nodeid in nodeids] == [2**32 - 1, 0, 1, 2]
    assert probe.created() == 2
    for since, known in (2**32 - 2, 0), (2**32 - 1, 1), (0, 2), (1, 3), (2, 4):
        for ino in range(70, 70 + known):
            assert named(probe.grant(ino, -1, since=since))[0] == "known"
        for ino in range(70 + known, 74):
            assert fails(lambda: probe.grant(ino, -1, since=since)) == errno.ESTALE  # noqa: B023


# Numbers shown


@pytest.mark.parametrize(
    ("ino", "shown"),
    [
        (0, COUNTED | 1),
        (1, COUNTED | 1),
        (3, 3),
        ((1 << 47) - 1, (1 << 47) - 1),
        (1 << 47, 1 << 47),
        (2**64 - 1, 2**64 - 1),
    ],
)
def test_the_numbers_of_the_source_are_those_of_the_host(ino: int, shown: int) -> None:
    probe = Probe()
    _, nodeid, number = named(probe.grant(ino, 10))
    assert number == shown
    assert probe.shown_beside(nodeid, 9) == 9
    assert probe.shown_beside(ROOT, 9) == 9


def test_numbers_show_their_place() -> None:
    probe = Probe(places=300)
    for place in range(1, 300):
        assert probe.place_on(0, 1 + place) == place
    assert probe.place_on(0, 999) is None
    _, nodeid, shown = named(probe.grant(70, 10, place=2, device=3))
    assert shown == 2 << 47 | 70
    assert probe.shown_beside(nodeid, 71) == 2 << 47 | 71
    assert named(probe.grant(70, 10, device=256))[2] == 255 << 47 | 70
    _, nodeid, shown = named(probe.grant(70, 10, device=257))
    assert shown >> 63
    assert probe.shown_beside(nodeid, 70) == shown
    _, nodeid, large = named(probe.grant(1 << 47, 10, device=3))
    assert large >> 63
    assert probe.shown_beside(nodeid, 1 << 47) == large != shown
    assert fails(lambda: probe.grant(70, 10, device=998)) == errno.ENFILE
    assert fails(lambda: probe.grant(70, 10, place=300)) == errno.ENFILE


def test_packed_numbers_count_places_from_one() -> None:
    probe = Probe(first_place=1, ino=2)
    assert (probe.inode(ROOT) or {})["shown_ino"] == 1 << 47 | 2
    assert probe.shown_beside(ROOT, 3) == 1 << 47 | 3
    assert named(probe.grant(1, 10))[2] == 1 << 47 | 1


# Open files


def test_a_slot_stays_while_a_file_is_open_on_it() -> None:
    probe = Probe()
    _, nodeid, _ = named(probe.grant(70, 10))
    fh, _ = probe.open(nodeid, 20)
    stream, _ = probe.open(nodeid, 21, table=DIRECTORIES)
    assert (fh, stream) == (1, 1)
    assert probe.opened(fh) == (20, -1, 2, 5, nodeid)
    assert probe.forget(nodeid) is None
    check(probe)
    assert probe.grant(70, 11) == ("known", nodeid, 70)
    assert probe.forget(nodeid) is None
    assert probe.release(stream, DIRECTORIES) == (21, -1, 0, None)
    assert probe.release(fh) == (20, -1, 0, (10, -1))
    assert fails(lambda: probe.release(fh)) == errno.EBADF
    assert probe.opened(fh) is None
    check(probe)


def test_a_handle_number_is_never_given_twice() -> None:
    probe = Probe()
    given = [probe.open(ROOT, 20)[0] for _ in range(3)]
    for fh in list(given):
        probe.release(fh)
        given.append(probe.open(ROOT, 20)[0])
    assert len(set(given)) == 6
    assert probe.header()["open_end"][FILES] == 4


@pytest.mark.parametrize("fh", [0, 2, 1 << 32, (1 << 32) | 1, 2**64 - 1, 1 << 16])
def test_handle_numbers_that_name_nothing_are_refused(fh: int) -> None:
    probe = Probe(opens=1 << 10)
    probe.open(ROOT, 20)
    assert probe.opened(fh) is None
    assert fails(lambda: probe.release(fh)) == errno.EBADF


def test_the_first_open_decides_on_the_backing_id() -> None:
    probe = Probe()
    _, nodeid, _ = named(probe.grant(70, 10))
    assert fails(lambda: probe.open(nodeid, 20, backing=UNDECIDED)) == errno.EAGAIN
    first, given = probe.open(nodeid, 20, backing=7)
    assert given == 7
    second, given = probe.open(nodeid, 21, backing=UNDECIDED)
    assert given == 7
    third, given = probe.open(nodeid, 22, backing=8)
    assert given == 7
    assert probe.release(first)[2] == probe.release(third)[2] == 0
    assert probe.release(second)[2] == 7
    assert probe.open(nodeid, 23, backing=0)[1] == 0
    assert probe.open(nodeid, 23, backing=9)[1] == 0


def test_the_first_twin_serves() -> None:
    probe = Probe()
    fh, _ = probe.open(ROOT, 20)
    assert probe.twin(fh, 30)
    assert not probe.twin(fh, 31)
    assert probe.release(fh)[:2] == (20, 30)


def test_privileges_are_noted_until_the_last_release() -> None:
    probe = Probe(budget=0)
    _, nodeid, _ = named(probe.grant(70, 10, handle=b"one"))

    def noted() -> bool:
        inode = probe.inode(nodeid) or {}
        assert inode["by_handle"]
        return bool(inode["privileged"])

    probe.set_privileged(nodeid)
    assert not noted()
    handles = [probe.open(nodeid, fd)[0] for fd in (20, 21)]
    probe.set_privileged(nodeid)
    probe.set_privileged(nodeid + 1)
    assert noted()
    probe.recover()
    assert noted()
    probe.release(handles[0])
    assert noted()
    probe.release(handles[1])
    assert not noted()


def test_the_last_forget_tells_of_an_open_file_that_the_inode_stays_for() -> None:
    probe = Probe()
    _, nodeid, _ = named(probe.grant(70, 10))
    probe.grant(70, 11)
    fh, _ = probe.open(nodeid, 20)
    probe.note(nodeid, fh)
    assert probe.forget_leaving(nodeid) == (False, 0)
    assert probe.forget_leaving(nodeid) == (False, fh)
    assert (probe.inode(nodeid) or {})["notes"] == 0
    assert probe.forget_leaving(nodeid) == (False, 0)
    assert probe.release(fh) == (20, -1, 0, (10, -1))
    assert probe.forget_leaving(nodeid) == (False, 0)


def test_full_tables_say_so() -> None:
    probe = Probe(inodes=128, opens=4)
    for ino in range(126):
        named(probe.grant(100 + ino, ino))
    assert fails(lambda: probe.grant(99, 1)) == errno.ENFILE
    for _ in range(3):
        probe.open(ROOT, 1)
    assert fails(lambda: probe.open(ROOT, 1)) == errno.ENFILE
    check(probe)


# Mounts


def test_a_mount_is_given_up_with_its_last_user() -> None:
    probe = Probe()
    assert probe.enter_mount(77) == 0
    assert probe.leave_mount(0) == -1
    assert probe.enter_mount(88) == -errno.ENOENT
    assert probe.add_mount(88, 40) == (1, True)
    assert probe.add_mount(88, 41) == (1, False)
    place = probe.place_on(1, 5)
    assert place == 1
    _, nodeid, shown = named(probe.grant(70, 10, place=place, device=5))
    assert (probe.inode(nodeid) or {})["mount_fd"] == 40
    assert probe.leave_mount(1) == probe.leave_mount(1) == -1
    check(probe)
    assert probe.forget(nodeid) == (10, 40)
    assert probe.enter_mount(88) == -errno.ENOENT
    assert probe.add_mount(88, -1) == (1, True)
    assert probe.place_on(1, 5) == place
    assert named(probe.grant(70, 10, place=place, device=5))[2] == shown
