"""The maps of ids, in both directions, and what they say of owners."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from tests.passthrough.core.probe_identity import Probe

RANGES = ((0, 100_000, 1000), (1000, 1000, 1), (2000, 50, 10))
PAIRS = {0: 100_000, 999: 100_999, 1000: 1000, 2000: 50, 2009: 59}
ANONYMOUS = 77
NONE, ROOT, ALL = 0, 1, 2
NO_ID = UNMAPPED = 4_294_967_295
UNMAPPED_GROUP = 4_294_967_294
NO_FILES_ID = 4_294_967_280
UID_REPORT, GID_REPORT = 0, 1


def probe(squash: int = NONE, *, mapped: bool = True) -> Probe:
    ranges = RANGES if mapped else ()
    return Probe(users=ranges, groups=ranges, squash=squash, anonymous=(ANONYMOUS, ANONYMOUS))


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(PermissionError) as caught:
        call()

    assert caught.value.errno == errno.EPERM


@pytest.mark.parametrize(("container", "host"), PAIRS.items())
def test_an_id_in_a_range_is_mapped_there_and_back(container: int, host: int) -> None:
    assert probe().to_host(container, container) == (host, host)
    assert probe().shown(host, host) == (container, container)


@pytest.mark.parametrize("number", [1001, 1999, 2010, NO_ID])
def test_an_id_in_no_range_has_no_counterpart_and_is_reported_once(number: int) -> None:
    volume = probe()
    for _ in range(3):
        refused(lambda: volume.to_host(number, 0))
        refused(lambda: volume.to_host(0, number))
        refused(lambda: volume.to_host(5000, 0))
        refused(lambda: volume.new_owner(None, 5000))

    assert volume.log.lines == [(UID_REPORT, number), (GID_REPORT, number)]


@pytest.mark.parametrize("number", [0, 49, 60, 999, 1001, 99_999, 101_000, NO_ID])
def test_an_owner_in_no_range_becomes_the_kernels_invalid_id(number: int) -> None:
    assert probe().shown(number, number) == (UNMAPPED, UNMAPPED)
    assert probe().lacks(number, number) == (True, True)


@pytest.mark.parametrize(
    ("uid", "gid", "expected"),
    [
        (10, 20, (0, 0)),
        (9, 20, (UNMAPPED, UNMAPPED)),
        (9, 19, (UNMAPPED, UNMAPPED)),
        (10, 19, (0, UNMAPPED_GROUP)),
    ],
)
def test_the_group_is_invalid_beside_an_unmapped_user_and_valid_beside_a_mapped_one(
    uid: int, gid: int, expected: tuple[int, int]
) -> None:
    both = Probe(users=[(0, 10, 5)], groups=[(0, 20, 5)])

    assert both.shown(uid, gid) == expected
    assert both.lacks(uid, gid) == (expected[0] == UNMAPPED, gid == 19)


@pytest.mark.parametrize(("squash", "expected"), [(NONE, UNMAPPED), (ROOT, 0), (ALL, ANONYMOUS)])
def test_the_anonymous_id_is_mapped_if_a_caller_acts_as_it(squash: int, expected: int) -> None:
    assert probe(squash).shown(ANONYMOUS, ANONYMOUS) == (expected, expected)
    assert probe(squash).shown(ANONYMOUS + 1, 0) == (UNMAPPED, UNMAPPED)


@pytest.mark.parametrize(
    ("squash", "ids"),
    [
        (NONE, {0: 100_000, 5: 100_005}),
        (ROOT, {0: ANONYMOUS, 5: 100_005}),
        (ALL, {0: ANONYMOUS, 5: ANONYMOUS, 5000: ANONYMOUS, NO_ID: ANONYMOUS}),
    ],
)
def test_squashing_comes_before_the_ranges(squash: int, ids: dict[int, int]) -> None:
    volume = probe(squash)

    assert {number: volume.to_host(number, number) for number in ids} == {
        number: (host, host) for number, host in ids.items()
    }
    assert volume.shown(100_005, 100_005) == (5, 5)


def test_without_ranges_an_unsquashed_id_is_the_same_on_the_host() -> None:
    for squash in (NONE, ROOT):
        volume = probe(squash, mapped=False)
        assert volume.to_host(5, 6) == (5, 6)
        assert volume.shown(0, 0) == (0, 0)
        assert volume.new_owner(5, 6) == (5, 6)


@given(st.integers(0, NO_ID - 1), st.sampled_from([NONE, ROOT]))
def test_a_mapped_id_maps_back_to_itself(number: int, squash: int) -> None:
    ids = probe(squash)
    try:
        host, _ = ids.to_host(number, number)
    except PermissionError:
        return
    assert ids.shown(host, host) == (number, number)


@given(st.integers(0, NO_ID - 1), st.sampled_from([NONE, ROOT, ALL]))
def test_a_shown_owner_acts_as_the_hosts_owner(number: int, squash: int) -> None:
    ids = probe(squash)
    shown, _ = ids.shown(number, number)

    if shown != UNMAPPED and squash != ALL:
        assert ids.to_host(shown, shown) == (number, number)


def test_a_range_may_end_at_the_last_id() -> None:
    last = NO_ID - 1
    volume = Probe(users=[(0, last, 1), (5, 0, 2), (last, 7, 1)])

    assert [volume.to_host(uid, 0)[0] for uid in (0, 5, 6, last)] == [last, 0, 1, 7]
    assert [volume.shown(uid, 0)[0] for uid in (last, 0, 1, 7)] == [0, 5, 6, last]
    for uid in (1, 4, last - 1, NO_ID):
        refused(lambda uid=uid: volume.to_host(uid, 0))  # type: ignore[misc]


def test_as_many_ranges_as_the_kernel_takes() -> None:
    ranges = [(10 * index, 5 + 10 * index, 10) for index in range(340)]
    volume = Probe(users=ranges)

    assert volume.to_host(3399, 1) == (3404, 1)
    refused(lambda: volume.to_host(3400, 1))


def test_users_and_groups_have_maps_and_anonymous_ids_of_their_own() -> None:
    both = Probe(users=[(0, 10, 5)], groups=[(0, 20, 5)])

    assert both.to_host(1, 1) == (11, 21)
    assert both.shown(11, 21) == (1, 1)
    assert both.new_owner(2, None) == (12, NO_ID)
    assert both.new_owner(None, 2) == (NO_ID, 22)
    assert both.new_owner(None, None) == (NO_ID, NO_ID)
    assert Probe(squash=ALL, anonymous=(3, 4)).to_host(1, 1) == (3, 4)
    assert Probe(squash=ROOT, anonymous=(3, 4)).new_owner(0, 0) == (3, 4)
    assert Probe(users=[(0, 10, 5)]).to_host(1, 1) == (11, 1)


@pytest.mark.parametrize(
    ("squash", "asks", "expected"),
    [
        (ROOT, (0, 0), (70, 80)),
        (ROOT, (0, 5), (70, 5)),
        (ROOT, (5, 0), (5, 80)),
        (ROOT, (5, 6), (5, 6)),
        (ROOT, (NO_ID, 6), (NO_ID, 6)),
        (ALL, (0, 0), (70, 80)),
        (ALL, (5, 6), (70, 80)),
    ],
)
def test_the_worker_acts_with_the_callers_ids_after_squashing(
    squash: int, asks: tuple[int, int], expected: tuple[int, int]
) -> None:
    volume = Probe(squash=squash, anonymous=(70, 80)).asked_by(*asks)

    assert volume.acts_as() == expected
    assert volume.squashes(*asks) is (expected != asks or NO_ID in asks)


def test_only_squashed_callers_without_a_counterpart_are_refused_without_a_report() -> None:
    volume = Probe(users=[(0, 100, 10)], groups=[(0, 200, 10)], squash=ROOT, anonymous=(70, 80))

    assert volume.asked_by(5, 6).acts_as() == (105, 206)
    assert volume.asked_by(50, 6).acts_as() == (NO_FILES_ID, 206)
    assert volume.asked_by(5, 60).acts_as() == (105, NO_FILES_ID)
    assert volume.asked_by(0, 6).acts_as() == (70, 206)
    refused(volume.asked_by(0, 60).acts_as)
    refused(volume.asked_by(60, 0).acts_as)
    refused(volume.asked_by(NO_ID, 5).acts_as)
    assert volume.log.lines == []


def test_no_caller_is_squashed_without_squashing() -> None:
    assert not any(probe().squashes(*asks) for asks in ((0, 0), (NO_ID, 5), (5, 5)))


def test_an_unsquashed_caller_may_be_in_all_groups_but_roots_and_unmapped_ones() -> None:
    plain = Probe(squash=ROOT, anonymous=(70, 80))
    mapped = Probe(squash=ROOT, anonymous=(70, 80), groups=[(0, 100, 10)])

    assert [gid for gid in (0, 5, 80, 100) if plain.may_have_group(gid)] == [5, 80, 100]
    assert [gid for gid in (0, 5, 80, 100, 101, 110) if mapped.may_have_group(gid)] == [101]
    assert mapped.new_group(3) == 103
    assert mapped.new_group(10) is mapped.new_group(None) is None
    assert mapped.new_group(0) == 80


# Owners

STRANGER, KNOWN = (7, 200_008), (100_007, 200_008)
OWNERS = Probe(users=[(0, 100_000, 1000)], groups=[(0, 200_000, 1000)])


def test_only_files_of_unmapped_users_cannot_be_changed() -> None:
    file = stat.S_IFREG | 0o666

    assert OWNERS.check_change(file, STRANGER) == -errno.EPERM
    assert OWNERS.check_change(file, KNOWN) == 0
    assert OWNERS.check_change(file, (100_007, 8)) == 0
    assert Probe(groups=[(0, 1, 1)]).check_change(file, STRANGER) == 0
    assert Probe().check_change(file, (NO_ID, NO_ID)) == 0


@pytest.mark.parametrize(
    ("mode", "flags", "opens"),
    [
        (0o664, os.O_RDONLY, True),
        (0o660, os.O_RDONLY, False),
        (0o666, os.O_WRONLY, False),
        (0o666, os.O_RDWR, False),
        (0o666, os.O_RDONLY | os.O_TRUNC, False),
        (0o711, os.O_RDONLY, False),
        (0o711, os.O_RDONLY | 0x20, True),  # execve(2)
    ],
)
def test_a_file_of_an_unmapped_owner_opens_only_as_its_mode_lets_others_read(
    mode: int, flags: int, opens: bool
) -> None:
    file = stat.S_IFREG | mode

    assert OWNERS.check_open(file, STRANGER, flags) == (0 if opens else -errno.EACCES)
    assert OWNERS.check_open(file, KNOWN, flags) == 0
    assert Probe().check_open(file, STRANGER, flags) == 0


def test_a_name_of_a_file_with_an_unmapped_owner_is_refused(tmp_path: Path) -> None:
    for name, uid in (("stranger", 7), ("known", 100_007)):
        (tmp_path / name).touch()
        os.chown(tmp_path / name, uid, 0)
    (tmp_path / "link").symlink_to("known")  # of root, as itself
    top = os.open(tmp_path, os.O_PATH)
    proc = os.open("/", os.O_PATH)
    try:
        assert OWNERS.check_named(top, b"known") == 0
        assert OWNERS.check_named(top, b"stranger") == -errno.EPERM
        assert OWNERS.check_named(top, b"link") == -errno.EPERM
        assert OWNERS.check_named(top, b"absent") == 0
        assert OWNERS.check_named(proc, b"proc") == 0  # a mount point: the call answers EBUSY
        assert Probe(squash=ROOT).check_named(top, b"stranger") == 0
    finally:
        os.close(top)
        os.close(proc)


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_device_nodes_are_refused_with_a_map_or_squashing(kind: int) -> None:
    for volume in (OWNERS, Probe(groups=[(0, 1, 1)]), Probe(squash=ROOT), Probe(squash=ALL)):
        assert volume.check_node(kind | 0o600) == -errno.EPERM
        assert volume.check_node(stat.S_IFIFO | 0o600) == 0
        assert volume.check_node(stat.S_IFSOCK | 0o600) == 0
        assert volume.check_node(0o600) == 0
    assert Probe().check_node(kind | 0o600) == 0


@pytest.mark.parametrize(
    ("mode", "asks", "mask", "expected"),
    [
        (0o400, (7, 9), os.R_OK, True),
        (0o400, (7, 9), os.W_OK, False),
        (0o077, (7, 8), os.R_OK, False),
        (0o060, (1, 8), os.R_OK | os.W_OK, True),
        (0o707, (1, 8), os.R_OK, False),
        (0o004, (1, 9), os.R_OK, True),
        (0o004, (1, 9), os.R_OK | os.W_OK, False),
        (0o000, (1, 9), os.F_OK, True),
        (0o000, (0, 0), os.R_OK | os.W_OK, True),
        (0o600, (0, 0), os.X_OK, False),
        (0o001, (0, 0), os.X_OK | os.R_OK, True),
        (stat.S_IFDIR, (0, 0), os.X_OK, True),
    ],
)
def test_access_is_by_the_ids_of_the_container(
    mode: int, asks: tuple[int, int], mask: int, expected: bool
) -> None:
    assert OWNERS.asked_by(*asks).allows(mode, KNOWN, mask) is expected
    assert Probe().asked_by(*asks).allows(mode, (7, 8), mask) is expected
    if asks[0]:
        host = (100_000 + asks[0], 200_000 + asks[1])
        assert OWNERS.asked_by(*host).allows(mode, KNOWN, mask) is (mask & ~mode & 7 == 0)


@pytest.mark.parametrize("asks", [(0, 0), (UNMAPPED, UNMAPPED), (7, 8)])
def test_access_to_a_file_of_an_unmapped_owner_is_that_of_others_without_writing(
    asks: tuple[int, int],
) -> None:
    volume = OWNERS.asked_by(*asks)

    assert volume.allows(0o666, STRANGER, os.R_OK)
    assert not volume.allows(0o666, STRANGER, os.W_OK)
    assert not volume.allows(0o666, STRANGER, os.X_OK)


@pytest.mark.parametrize(
    ("volume", "asks", "checked", "expected"),
    [
        (Probe(), (9, 9), True, 1),
        (Probe(), (9, 9), False, 0),
        (Probe(), (7, 9), False, 1),
        (Probe(), (9, 8), False, 1),
        (Probe(), (0, 0), False, 0),
        (Probe(users=[(0, 7, 1)], groups=[(0, 80, 9)]), (0, 9), False, 1),
        (Probe(users=[(0, 7, 1)], groups=[(0, 80, 9)]), (7, 8), False, 0),
        (Probe(squash=ROOT, anonymous=(70, 8)), (0, 0), False, 1),
        (Probe(squash=ROOT, anonymous=(7, 80)), (0, 0), True, 0),
        (Probe(squash=ROOT, anonymous=(70, 80)), (5, 5), True, 1),
        (Probe(squash=ROOT, anonymous=(70, 80)), (5, 5), False, 0),
        (Probe(squash=ALL, anonymous=(70, 80)), (7, 8), True, 0),
        (Probe(squash=ALL, anonymous=(70, 8)), (5, 5), False, 1),
        (Probe(squash=ROOT, users=[(0, 1, 1)]), (5, 0), True, -errno.EPERM),
    ],
)
def test_an_sgid_bit_is_kept_by_members_and_by_squashed_callers_of_that_group(
    volume: Probe, asks: tuple[int, int], checked: bool, expected: int
) -> None:
    assert volume.asked_by(*asks).keeps_sgid(stat.S_IFREG | 0o2600, (7, 8), checked) == expected
