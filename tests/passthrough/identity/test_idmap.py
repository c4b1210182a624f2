import errno
from collections.abc import Sequence

import pytest

from passthrough.identity.idmap import (
    ContainerId,
    ContainerIds,
    HostId,
    IdMap,
    IdMaps,
    UnmappedError,
    why_no_change_allowed,
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
def test_an_id_in_a_range_is_mapped_and_reached(container: int, host: int) -> None:
    assert id_map(RANGES).to_host(ContainerId(container)) == host
    assert id_map(RANGES).reaches(HostId(host))


@pytest.mark.parametrize("number", [1001, 1999, 2010, 4_294_967_295])
def test_an_id_in_no_range_has_no_counterpart_on_the_host(number: int) -> None:
    with pytest.raises(UnmappedError) as refused:
        id_map(RANGES).to_host(ContainerId(number))

    assert refused.value.errno == errno.EPERM
    assert refused.value.strerror == f"id {number} is in no range of map_uid"


@pytest.mark.parametrize("number", [0, 49, 60, 999, 1001, 99_999, 101_000])
def test_no_caller_acts_as_an_owner_in_no_range(number: int) -> None:
    assert not id_map(RANGES).reaches(HostId(number))


@pytest.mark.parametrize("squash", Squash)
def test_squashed_callers_act_as_the_anonymous_id(squash: Squash) -> None:
    assert id_map(RANGES, squash).reaches(HostId(ANONYMOUS)) is (squash is not Squash.NONE)
    assert not id_map(RANGES, squash).reaches(HostId(ANONYMOUS + 1))


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


def test_without_ranges_an_unsquashed_id_is_the_same_on_the_host() -> None:
    assert id_map(squash=Squash.ROOT).to_host(ContainerId(5)) == 5
    assert id_map().reaches(HostId(5))


def test_users_and_groups_have_maps_and_anonymous_ids_of_their_own() -> None:
    both = IdMaps(effective(map_uid=(Range(0, 10, 5),), map_gid=(Range(0, 20, 5),)))

    assert both.to_host(ContainerIds(ContainerId(1), ContainerId(1))) == (11, 21)
    squashed = IdMaps(effective(squash=Squash.ALL, anon_uid=3, anon_gid=4))
    assert squashed.to_host(ContainerIds(ContainerId(1), ContainerId(1))) == (3, 4)


def test_an_unmapped_owner_of_the_top_directory_is_explained() -> None:
    mapped = effective(map_uid=(Range(0, 10, 5),))

    assert why_no_change_allowed(mapped, HostId(14)) == ""
    assert why_no_change_allowed(effective(map_gid=(Range(0, 10, 5),)), HostId(15)) == ""
    assert "the host's user 15, which is in no range of map_uid" in why_no_change_allowed(
        mapped, HostId(15)
    )
