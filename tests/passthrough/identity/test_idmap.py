import errno
from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

from passthrough.identity.idmap import (
    UNMAPPED,
    UNMAPPED_GROUP,
    ContainerId,
    ContainerIds,
    HostId,
    HostIds,
    IdMap,
    IdMaps,
    UnmappedError,
    maps,
)
from passthrough.options.choices import Squash
from passthrough.options.values import Range
from tests.support.tools.options import effective

RANGES = (Range(0, 100_000, 1000), Range(1000, 1000, 1), Range(2000, 50, 10))
PAIRS = {0: 100_000, 999: 100_999, 1000: 1000, 2000: 50, 2009: 59}
ANONYMOUS = 77


def id_map(ranges: Sequence[Range] = (), squash: Squash = Squash.NONE) -> IdMap:
    return IdMap("map_uid", tuple(ranges), squash, ANONYMOUS)


@pytest.mark.parametrize(("container", "host"), PAIRS.items())
def test_an_id_in_a_range_is_mapped_there_and_back(container: int, host: int) -> None:
    assert id_map(RANGES).to_host(ContainerId(container)) == host
    assert id_map(RANGES).to_container(HostId(host)) == container


@pytest.mark.parametrize("number", [1001, 1999, 2010, 4_294_967_295])
def test_an_id_in_no_range_has_no_counterpart_on_the_host(number: int) -> None:
    with pytest.raises(UnmappedError) as refused:
        id_map(RANGES).to_host(ContainerId(number))

    assert refused.value.errno == errno.EPERM
    assert refused.value.strerror == f"id {number} is in no range of map_uid"


@pytest.mark.parametrize("number", [0, 49, 60, 999, 1001, 99_999, 101_000])
def test_an_owner_in_no_range_becomes_the_kernels_invalid_id(number: int) -> None:
    assert id_map(RANGES).to_container(HostId(number)) == UNMAPPED == 4_294_967_295


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
    both = IdMaps(effective(map_uid=(Range(0, 10, 5),), map_gid=(Range(0, 20, 5),)))

    assert both.to_container(HostIds(HostId(uid), HostId(gid))) == expected
    assert both.lacks_user(HostId(uid)) is (expected[0] == UNMAPPED)
    assert both.lacks_group(HostId(gid)) is (gid == 19)
    assert UNMAPPED_GROUP == 4_294_967_294


@pytest.mark.parametrize(
    ("squash", "expected"),
    [(Squash.NONE, UNMAPPED), (Squash.ROOT, 0), (Squash.ALL, ANONYMOUS)],
)
def test_the_anonymous_id_is_mapped_if_a_caller_acts_as_it(squash: Squash, expected: int) -> None:
    assert id_map(RANGES, squash).to_container(HostId(ANONYMOUS)) == expected
    assert id_map(RANGES, squash).to_container(HostId(ANONYMOUS + 1)) == UNMAPPED


@pytest.mark.parametrize(
    ("squash", "ids"),
    [
        (Squash.NONE, {0: 100_000, 5: 100_005}),
        (Squash.ROOT, {0: ANONYMOUS, 5: 100_005}),
        (Squash.ALL, {0: ANONYMOUS, 5: ANONYMOUS, 5000: ANONYMOUS}),
    ],
)
def test_squashing_comes_before_the_ranges(squash: Squash, ids: dict[int, int]) -> None:
    squashing = id_map(RANGES, squash)

    assert {number: squashing.to_host(ContainerId(number)) for number in ids} == ids
    assert squashing.to_container(HostId(100_005)) == 5


def test_without_ranges_an_unsquashed_id_is_the_same_on_the_host() -> None:
    assert id_map(squash=Squash.ROOT).to_host(ContainerId(5)) == 5
    assert id_map(squash=Squash.ROOT).to_container(HostId(0)) == 0


@given(st.integers(0, 2**32 - 2))
def test_a_mapped_id_maps_back_to_itself(number: int) -> None:
    ids = id_map(RANGES)
    try:
        host = ids.to_host(ContainerId(number))
    except UnmappedError:
        return
    assert ids.to_container(host) == number


def test_users_and_groups_have_maps_and_anonymous_ids_of_their_own() -> None:
    config = effective(map_uid=(Range(0, 10, 5),), map_gid=(Range(0, 20, 5),))
    both = IdMaps(config)

    assert both.to_host(ContainerIds(ContainerId(1), ContainerId(1))) == (11, 21)
    assert both.to_container(HostIds(HostId(11), HostId(21))) == (1, 1)
    assert both.new_owner(ContainerId(2), None) == (12, None)
    assert both.new_owner(None, ContainerId(2)) == (None, 22)
    squashed = IdMaps(effective(squash=Squash.ALL, anon_uid=3, anon_gid=4))
    assert squashed.to_host(ContainerIds(ContainerId(1), ContainerId(1))) == (3, 4)


def test_volumes_without_map_and_squash_have_no_maps() -> None:
    assert maps(effective(anon_uid=5)) is None
    for config in (
        effective(map_uid=RANGES),
        effective(map_gid=RANGES),
        effective(squash=Squash.ROOT),
        effective(squash=Squash.ALL),
    ):
        assert maps(config) is not None
