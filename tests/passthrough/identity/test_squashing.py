"""The decisions about the ids that the worker acts with if a volume squashes ids."""

import os
import stat
import struct

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.identity.attributes import NO_CHANGES, Changes
from passthrough.identity.idmap import ContainerId, HostId, HostIds
from passthrough.identity.squashing import (
    AS_CALLER,
    AS_OPENER,
    AS_WORKER,
    BY_ARGUMENTS,
    REFUSED,
    Squashing,
    is_execution,
    may_execute,
    needs_no_right,
)
from passthrough.options.choices import Squash
from passthrough.options.values import Range
from tests.support.tools.direct import caller
from tests.support.tools.options import effective

NOT_REQUESTS = {"asked_by", "open_for_writing", "tell_lost_privileges"}
ANONYMOUS = HostIds(HostId(70), HostId(80))
NO_ID = 0xFFFF_FFFF
CLOEXEC_AND_EXECUTION = os.O_CLOEXEC | 0x20


def test_each_operation_has_one_identity() -> None:
    operations = {name for name in dir(PassthroughFs) if callable(getattr(PassthroughFs, name))}
    tables = (AS_CALLER.keys(), BY_ARGUMENTS, AS_OPENER, AS_WORKER, REFUSED)

    assert sorted(name for table in tables for name in table) == sorted(
        name for name in operations - NOT_REQUESTS if not name.startswith("_")
    )


@pytest.mark.parametrize(
    ("squash", "asks", "expected"),
    [
        (Squash.ROOT, (0, 0), (70, 80)),
        (Squash.ROOT, (0, 5), (70, 5)),
        (Squash.ROOT, (5, 0), (5, 80)),
        (Squash.ROOT, (5, 6), (5, 6)),
        (Squash.ROOT, (NO_ID, 6), (NO_ID, 6)),
        (Squash.ALL, (0, 0), (70, 80)),
        (Squash.ALL, (5, 6), (70, 80)),
    ],
)
def test_the_worker_acts_with_the_callers_ids_after_squashing(
    squash: Squash, asks: tuple[int, int], expected: tuple[int, int]
) -> None:
    squashing = Squashing(effective(squash=squash, anon_uid=70, anon_gid=80))

    assert squashing.acts_as(caller(*asks)) == expected
    assert squashing.squashes(caller(*asks)) is (expected != asks or NO_ID in asks)
    assert squashing.squashes_all is (squash is Squash.ALL)


def test_an_unsquashed_caller_may_be_in_all_groups_but_roots_and_unmapped_ones() -> None:
    plain = Squashing(effective(squash=Squash.ROOT, anon_gid=80))
    mapped = Squashing(
        effective(squash=Squash.ROOT, anon_gid=80, map_gid=(Range(0, 100, 10),), map_uid=())
    )

    assert set(plain.possible_groups((0, 5, 5, 80, 100))) == {5, 80, 100}
    assert set(mapped.possible_groups((0, 5, 80, 100, 101, 110))) == {101}
    assert mapped.new_group(ContainerId(3)) == (103,)
    assert mapped.new_group(ContainerId(10)) == mapped.new_group(None) == ()


def test_supplementary_groups_give_the_right_to_execute_as_the_primary_group_does() -> None:
    more = (HostId(5),)

    assert may_execute(stat.S_IFREG | 0o010, (1, 5), b"", ANONYMOUS, more)
    assert not may_execute(stat.S_IFREG | 0o001, (1, 5), b"", ANONYMOUS, more)


@pytest.mark.parametrize(
    ("changes", "handle", "expected"),
    [
        (NO_CHANGES, None, True),
        (NO_CHANGES, 1, True),
        (Changes(size=5), 1, True),
        (Changes(size=5), None, False),
        (Changes(mtime=(1, 2)), 1, True),
        (Changes(mtime=(1, 2)), None, False),
        (Changes(atime=(1, 2)), None, False),
        (Changes(mode=0o600), 1, False),
        (Changes(uid=ContainerId(0)), 1, False),
        (Changes(gid=ContainerId(0)), 1, False),
        (Changes(size=5, mode=0o600), 1, False),
    ],
)
def test_some_changes_of_attributes_need_no_right(
    changes: Changes, handle: int | None, expected: bool
) -> None:
    assert needs_no_right(changes, handle) is expected


def test_execution_is_distinguished_from_reading() -> None:
    assert is_execution(CLOEXEC_AND_EXECUTION)
    assert not is_execution(os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOATIME)


@pytest.mark.parametrize(
    ("mode", "owner", "expected"),
    [
        (0o100, (70, 1), True),
        (0o677, (70, 80), False),
        (0o010, (1, 80), True),
        (0o767, (1, 80), False),
        (0o001, (1, 1), True),
        (0o776, (1, 1), False),
    ],
)
def test_the_first_matching_class_of_a_mode_decides_about_execution(
    mode: int, owner: tuple[int, int], expected: bool
) -> None:
    assert may_execute(stat.S_IFREG | mode, owner, b"", ANONYMOUS) is expected


USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32


@pytest.mark.parametrize(
    ("entries", "owner", "expected"),
    [
        ([(USER, 1, 70), (MASK, 1, 0)], (1, 1), True),
        ([(USER, 1, 70), (MASK, 6, 0)], (1, 1), False),
        ([(USER, 6, 70), (MASK, 7, 0), (OTHER, 7, 0)], (1, 1), False),
        ([(GROUP_OBJ, 1, 0), (MASK, 7, 0)], (1, 80), True),
        ([(GROUP_OBJ, 6, 0), (GROUP, 1, 80), (MASK, 7, 0)], (1, 80), True),
        ([(GROUP_OBJ, 6, 0), (GROUP, 6, 80), (OTHER, 7, 0)], (1, 80), False),
        ([(GROUP, 1, 9), (MASK, 7, 0), (OTHER, 6, 0)], (1, 1), False),
        ([(GROUP_OBJ, 1, 0), (OTHER, 1, 0)], (1, 1), True),
        ([(USER, 1, 70), (MASK, 7, 0)], (70, 1), False),
    ],
)
def test_an_acl_decides_about_execution_as_in_acl_5(
    entries: list[tuple[int, int, int]], owner: tuple[int, int], expected: bool
) -> None:
    """The mode gives the owner no rights, and its group bits are the mask."""
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)

    assert may_execute(stat.S_IFREG | 0o077, owner, acl, ANONYMOUS) is expected
