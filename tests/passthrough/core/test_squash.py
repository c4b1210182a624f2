"""squash.pyx: the ids that requests of a squashed volume act with, and checks of execution."""

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.passthrough.core.probe_identity import Probe
from tests.support.tools.core_threads import (
    ALL,
    CALLER,
    ITSELF,
    NO_FILES_ID,
    NO_ID,
    ROOT,
    Identity,
    in_thread,
    present,
    without_groups,
)

ALONE, AS_MEMBER, EITHER = 1, 2, 3
AS_WORKER, AS_CALLER, ON_TWO, BY_ITSELF, NEVER = range(5)
FUSE_ACCESS = 34
ANONYMOUS = (70, 80)


# As whom an operation acts


class Tree(NamedTuple):
    """A volume with files, and what its operations have seen."""

    volume: Probe
    path: Path
    seen: list[Identity]
    descriptors: list[int]

    def grant(self, name: str) -> int:
        self.descriptors.append(os.open(self.path / name, os.O_PATH | os.O_NOFOLLOW))
        return self.volume.grant(self.descriptors[-1])

    def answering(self, *results: int) -> Callable[[], int]:
        """Return an operation that gives *results* in turn, and notes as whom it acts."""
        left = list(results)

        def operation() -> int:
            self.seen.append(present(self.volume))
            return left.pop(0)

        return operation

    def acting(self, *results: int, nodes: tuple[int, ...] = (), **how: object) -> int:
        """Return what comes of an operation that gives *results* in turn."""
        operation = self.answering(*results)
        return without_groups(
            self.volume,
            lambda: self.volume.acting(operation, nodes, **how),  # type: ignore[arg-type]
        )


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Callable[..., Tree]]:
    """Yield a function that makes a volume over a directory with files of several groups."""
    path = tmp_path / "source"
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o711)
    (path / "private").mkdir(mode=0o700)
    for name in ("team", "open", "private/file"):
        (path / name).touch()
    os.chown(path / "team", 0, 900)
    (path / "team").chmod(0o770)
    os.chown(path / "open", 0, 901)
    (path / "open").chmod(0o666)

    descriptors: list[int] = []

    def make(**options: object) -> Tree:
        volume = Probe(**{"squash": ROOT, "anonymous": ANONYMOUS, **options})  # type: ignore[arg-type]
        descriptors.append(os.open(path, os.O_PATH | os.O_DIRECTORY))
        volume.serve(descriptors[-1])
        return Tree(volume, path, [], descriptors)

    yield make
    for fd in descriptors:
        os.close(fd)


REFUSALS = [errno.EPERM, errno.EACCES]


@pytest.mark.parametrize("result", [0, 17, -errno.EPERM, -errno.EACCES, -errno.ENOENT])
@pytest.mark.parametrize(
    ("squash", "asks", "ids"),
    [(ROOT, (0, 0), ANONYMOUS), (ROOT, (5, 0), (5, 80)), (ALL, (5, 6), ANONYMOUS)],
)
@pytest.mark.parametrize("tries", [ALONE, AS_MEMBER, EITHER])
def test_a_squashed_caller_acts_once_without_groups(  # noqa: PLR0917 - two tables
    tree: Callable[..., Tree],
    result: int,
    squash: int,
    asks: tuple[int, int],
    ids: tuple[int, int],
    tries: int,
) -> None:
    made = tree(squash=squash)
    made.volume.asked_by(*asks)

    assert made.acting(result, nodes=(made.grant("team"),), more=(902,), tries=tries) == result
    assert made.seen == [Identity(ids, [], True)]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_another_caller_acts_as_a_member_after_the_host_has_refused(
    tree: Callable[..., Tree], refusal: int
) -> None:
    made = tree()
    made.volume.asked_by(5, 6)
    nodes = (made.grant("team"), made.grant("open"))
    alone, member = Identity((5, 6), [], True), Identity((5, 6), [900, 902], True)

    assert made.acting(-refusal, 7, nodes=nodes, more=(902, 900, 0)) == 7
    assert made.acting(-refusal, -refusal, nodes=nodes, more=(902,)) == -refusal
    assert made.acting(-refusal, nodes=nodes, more=(902,), tries=ALONE) == -refusal
    assert made.acting(9, nodes=nodes, more=(902,), tries=AS_MEMBER) == 9
    assert made.acting(-refusal, -errno.ENOENT) == -errno.ENOENT
    assert made.seen == [alone, member, alone, member, alone, member, alone, alone]


@pytest.mark.parametrize("result", [0, 4096, -errno.ENOENT, -errno.EIO, -0x4000_0000])
def test_another_result_is_the_only_one(tree: Callable[..., Tree], result: int) -> None:
    made = tree()
    made.volume.asked_by(5, 6)

    assert made.acting(result, nodes=(made.grant("team"),)) == result
    assert made.seen == [Identity((5, 6), [], True)]


def test_a_member_needs_a_group_that_gives_a_right_and_that_a_caller_can_have(
    tree: Callable[..., Tree],
) -> None:
    made = tree(groups=[(0, 895, 10)])
    made.volume.asked_by(5, 6)

    def groups(*more: int) -> list[int]:
        made.seen.clear()
        nodes = (made.grant("open"),) if not more else ()
        made.acting(-errno.EPERM, 0, nodes=nodes, more=more)
        return made.seen[1].groups

    assert groups() == []  # others have what the group has
    assert groups(895, 896, 904, 905, 80, 0) == [896, 904]
    assert groups(*range(896, 905)) == [*range(896, 904)]  # no more than there is room for


def test_a_forgotten_inode_gives_no_membership(tree: Callable[..., Tree]) -> None:
    made = tree()
    made.volume.asked_by(5, 6)

    assert made.acting(-errno.EPERM, nodes=(77,)) == -errno.ESTALE
    assert made.acting(5, nodes=(77,)) == 5


def test_a_caller_without_a_counterpart_acts_as_an_owner_of_no_file(
    tree: Callable[..., Tree],
) -> None:
    made = tree(users=[(0, 100_000, 10)])
    made.volume.asked_by(50, 6)
    assert made.acting(1) == 1
    made.volume.asked_by(50, 0)
    assert made.acting(1) == -errno.EPERM
    made.volume.asked_by(NO_ID, 5)
    assert made.acting(1) == -errno.EPERM

    assert made.seen == [Identity((NO_FILES_ID, 6), [], True)]
    assert made.volume.log.lines == []


def test_an_id_that_no_user_has_is_refused(tree: Callable[..., Tree]) -> None:
    made = tree()
    for asks in ((NO_ID, 5), (5, NO_ID)):
        made.volume.asked_by(*asks)
        for tries in (ALONE, AS_MEMBER, EITHER):
            assert made.acting(1, tries=tries) == -errno.EPERM

    assert made.seen == []


def test_an_operation_inside_of_another_is_the_plain_one(tree: Callable[..., Tree]) -> None:
    made = tree()
    made.volume.asked_by(5, 6)
    team = made.grant("team")
    inner = made.answering(-errno.EPERM, -errno.EPERM)

    def outer() -> int:
        return made.volume.acting(inner, (team,))

    assert without_groups(made.volume, lambda: made.volume.acting(outer, (team,))) == -errno.EPERM
    assert made.seen == [Identity((5, 6), [], True), Identity((5, 6), [900], True)]


@pytest.mark.parametrize(
    ("squash", "asks", "expected"),
    [(ROOT, (0, 0), -errno.EACCES), (ROOT, (5, 5), 1), (ALL, (5, 5), 1)],
)
def test_a_squashed_caller_must_be_able_to_reach_the_file(
    tree: Callable[..., Tree], squash: int, asks: tuple[int, int], expected: int
) -> None:
    """With squash=all each caller is the one for which the kernel remembers names."""
    made = tree(squash=squash)
    made.volume.asked_by(*asks)
    hidden, shown = made.grant("private/file"), made.grant("open")

    assert made.acting(1, nodes=(hidden,)) == expected
    assert made.acting(1, nodes=(shown, hidden)) == expected
    assert made.acting(1, nodes=(hidden, 1)) == expected
    assert made.acting(1, nodes=(shown, 1)) == 1
    assert len(made.seen) == (1 if expected < 0 else 4)


# Handlers


@pytest.mark.parametrize("asks", [(0, 0), (5, 5)])
def test_a_handler_acts_as_its_row_says(tree: Callable[..., Tree], asks: tuple[int, int]) -> None:
    made = tree()
    made.volume.asked_by(*asks)
    squashed = asks == (0, 0)
    caller = Identity(ANONYMOUS if squashed else asks, [], True)
    team, hidden = made.grant("team"), made.grant("private/file")
    found = []

    def serve(acts: int, *, nodeid: int = 1, linked: int = 1) -> int:
        def handler() -> int:
            found.append((present(made.volume), made.volume.squashed))
            return 5

        return without_groups(
            made.volume,
            lambda: made.volume.served(handler, acts, nodeid=nodeid, linked=linked),
        )

    assert [serve(acts, nodeid=hidden) for acts in (AS_WORKER, BY_ITSELF, NEVER)] == [
        *(5, 5, -errno.EBADF)
    ]
    assert found == [(ITSELF, squashed)] * 2
    found.clear()
    expected = -errno.EACCES if squashed else 5
    assert serve(AS_CALLER, nodeid=team) == 5
    assert serve(ON_TWO, nodeid=team, linked=team) == serve(AS_CALLER, nodeid=1) == 5
    assert serve(AS_CALLER, nodeid=hidden) == expected
    assert serve(ON_TWO, nodeid=hidden, linked=team) == expected
    assert serve(ON_TWO, nodeid=team, linked=hidden) == expected
    assert found == [(caller, squashed)] * (3 if squashed else 6)
    assert not made.volume.squashed


def test_the_answer_to_access_is_no_refusal(tree: Callable[..., Tree]) -> None:
    made = tree()
    made.volume.asked_by(5, 6)
    team = made.grant("team")

    def serve(opcode: int, *results: int) -> int:
        handler = made.answering(*results)
        return without_groups(
            made.volume,
            lambda: made.volume.served(handler, AS_CALLER, opcode=opcode, nodeid=team),
        )

    assert serve(FUSE_ACCESS, -errno.EACCES) == -errno.EACCES
    assert serve(FUSE_ACCESS - 1, -errno.EACCES, 0) == 0
    assert [identity.groups for identity in made.seen] == [[], [], [900]]


def test_as_a_member_of_a_group_no_caller_gives_a_file_the_sgid_bit() -> None:
    volume = Probe(squash=ROOT)
    tries = {
        (mode, directory): volume.mode_tries(mode, directory)
        for mode in (None, 0o755, 0o4755, 0o2755)
        for directory in (False, True)
    }

    assert tries.pop((0o2755, False)) == ALONE
    assert tries.pop((0o2755, True)) == AS_MEMBER
    assert set(tries.values()) == {EITHER}


@pytest.mark.parametrize(("parent", "inherits"), [(0o2777, True), (0o777, False)])
def test_a_new_file_gets_no_sgid_bit_of_an_inherited_group_from_a_member(
    parent: int, inherits: bool
) -> None:
    volume = Probe(squash=ROOT)

    def modes() -> list[int]:
        return [volume.without_sgid(parent, mode) for mode in (0o2755, 0o6777, 0o755)]

    def run() -> list[list[int]]:
        return [
            modes(),
            volume.as_powerless(CALLER, (), modes),
            volume.as_powerless(CALLER, (900,), modes),
        ]

    given = [0o2755, 0o6777, 0o755]
    taken = [0o755, 0o4777, 0o755]
    assert without_groups(volume, run) == [given, given, taken if inherits else given]


# Execution


def may_execute(path: Path, ids: tuple[int, int], groups: tuple[int, ...] = ()) -> int:
    volume = Probe(squash=ROOT)
    fd = os.open(path, os.O_PATH)
    try:
        return without_groups(
            volume, lambda: volume.as_powerless(ids, groups, lambda: volume.may_execute(fd))
        )
    finally:
        os.close(fd)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "program").touch()
    return tmp_path / "program"


@pytest.mark.parametrize(
    ("mode", "owner", "groups", "expected"),
    [
        (0o100, (70, 1), (), 1),
        (0o677, (70, 80), (), 0),
        (0o010, (1, 80), (), 1),
        (0o767, (1, 80), (), 0),
        (0o001, (1, 1), (), 1),
        (0o776, (1, 1), (), 0),
        (0o010, (1, 5), (4, 5), 1),
        (0o001, (1, 5), (4, 5), 0),
    ],
)
def test_the_first_matching_class_of_a_mode_decides_about_execution(
    program: Path, mode: int, owner: tuple[int, int], groups: tuple[int, ...], expected: int
) -> None:
    program.chmod(mode)
    os.chown(program, *owner)

    assert may_execute(program, ANONYMOUS, groups) == expected


USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHERS = 1, 2, 4, 8, 16, 32
NO_NUMBER = 0xFFFF_FFFF


@pytest.mark.parametrize(
    ("entries", "owner", "groups", "expected"),
    [
        ([(USER, 1, 70), (MASK, 1)], (1, 1), (), 1),
        ([(USER, 1, 70), (MASK, 6)], (1, 1), (), 0),
        ([(USER, 6, 70), (MASK, 7), (OTHERS, 7)], (1, 1), (), 0),
        ([(USER, 6, 70), (USER, 7, 71), (MASK, 7), (OTHERS, 7)], (1, 1), (), 0),
        ([(GROUP_OBJ, 1), (MASK, 7)], (1, 80), (), 1),
        ([(GROUP_OBJ, 6), (GROUP, 1, 80), (MASK, 7)], (1, 80), (), 1),
        ([(GROUP_OBJ, 6), (GROUP, 6, 80), (MASK, 7), (OTHERS, 7)], (1, 80), (), 0),
        ([(GROUP_OBJ, 6), (GROUP, 6, 9), (GROUP, 1, 12), (MASK, 7)], (1, 9), (9, 12), 1),
        ([(GROUP, 1, 9), (MASK, 7), (OTHERS, 6)], (1, 1), (), 0),
        ([(GROUP, 1, 9), (MASK, 7), (OTHERS, 6)], (1, 1), (9,), 1),
        ([(GROUP_OBJ, 6), (GROUP, 1, 9), (MASK, 6), (OTHERS, 7)], (1, 1), (9,), 0),
        ([(USER, 1, 71), (GROUP_OBJ, 0), (MASK, 0), (OTHERS, 1)], (1, 1), (), 1),
        ([(USER, 1, 70), (MASK, 7)], (70, 1), (), 0),
    ],
)
def test_an_acl_decides_about_execution_as_in_acl_5(
    program: Path,
    entries: list[tuple[int, ...]],
    owner: tuple[int, int],
    groups: tuple[int, ...],
    expected: int,
) -> None:
    """The mode gives the owner no rights, and its group bits are the mask."""
    os.chown(program, *owner)
    defaults = {USER_OBJ: (USER_OBJ, 0), GROUP_OBJ: (GROUP_OBJ, 6), OTHERS: (OTHERS, 0)}
    missing = [entry for tag, entry in defaults.items() if tag not in {e[0] for e in entries}]
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *(*entry, NO_NUMBER)[:3]) for entry in sorted([*entries, *missing])
    )
    os.setxattr(program, "system.posix_acl_access", acl)

    assert may_execute(program, ANONYMOUS, groups) == expected


def test_a_long_acl_is_read_whole(program: Path) -> None:
    entries = [
        (USER_OBJ, 0, NO_NUMBER),
        *((USER, 7, 1000 + index) for index in range(400)),
        *((GROUP_OBJ, 0, NO_NUMBER), (MASK, 7, NO_NUMBER), (OTHERS, 0, NO_NUMBER)),
    ]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(program, "system.posix_acl_access", acl)

    assert may_execute(program, (1399, 5)) == 1
    assert may_execute(program, (1400, 5)) == 0


def test_a_thread_with_capabilities_is_not_asked(program: Path) -> None:
    volume = Probe(squash=ROOT)
    fd = os.open(program, os.O_PATH)
    try:
        assert in_thread(volume, lambda: volume.may_execute(fd)) == -errno.EIO
        assert (
            in_thread(
                volume, lambda: volume.as_powerless(CALLER, (), lambda: volume.may_execute(-1))
            )
            == -errno.EBADF
        )
    finally:
        os.close(fd)
    assert stat.S_ISREG(program.stat().st_mode)
