"""The comparison itself: it finds each difference, and each known difference still exists."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuzz import calls, differential, tree
from tests.fuzz.differential import DifferenceError, MountLostError, Sides, both_sides, replay
from tests.fuzz.known import AVOIDED, DIFFERENCES, Difference
from tests.fuzz.mounts import Variant
from tests.fuzz.operations import Operations

pytestmark = pytest.mark.full

VARIANT = Variant({"session": "libfuse", "cache": "auto"})


@pytest.fixture(scope="module")
def shared() -> Iterator[Sides]:
    with both_sides(VARIANT) as both:
        yield both


@pytest.fixture
def sides(shared: Sides) -> Iterator[Sides]:
    shared.begin()
    yield shared
    shared.known = DIFFERENCES
    shared.end()


@pytest.fixture
def own_sides() -> Iterator[Sides]:
    """Sides of this test alone: it may leave them different, or end the mount."""
    with both_sides(VARIANT) as both:
        both.begin()
        yield both


@pytest.mark.parametrize("entry", DIFFERENCES, ids=lambda entry: entry.operation)
def test_a_known_difference_is_there(entry: Difference) -> None:
    """If an entry's program shows no difference, the entry must be removed."""
    *before, last = entry.program
    with both_sides(entry.variant) as sides:
        sides.begin()
        sides.known = ()
        for step in before:
            sides.do(*step)
        with pytest.raises(DifferenceError):
            sides.do(*last)

        sides.known = DIFFERENCES
        sides.do(*last)


@pytest.mark.parametrize("name", AVOIDED)
def test_an_avoided_operation_makes_a_difference(name: str) -> None:
    *before, last = AVOIDED[name].program
    with both_sides(AVOIDED[name].variant) as sides:
        sides.begin()
        for step in before:
            sides.do(*step)
        with pytest.raises(DifferenceError):
            do_and_compare(sides, last)


def do_and_compare(sides: Sides, step: tuple[object, ...]) -> None:
    sides.do(*step)
    sides.compare()


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda top: (top / "a").write_bytes(b"!" * 5_000),
    "size": lambda top: os.truncate(top / "a", 4_999),
    "mode": lambda top: (top / "d").chmod(0o700),
    "owner": lambda top: os.chown(top / "d", 1, -1),
    "group": lambda top: os.chown(top / "d", -1, 1),
    "time": lambda top: os.utime(top / "d", ns=(0, 1)),
    "target": lambda top: swap(top / "l", top / "l1"),
    "link count": lambda top: (top / "d/b").unlink(),
    "topology": lambda top: swap(top / "d/b", top / "d/c1"),
    "kind": lambda top: (top / "f").rename(top / "l"),
    "name": lambda top: (top / "new").mkdir(),
    "attribute": lambda top: os.setxattr(top / "a", "user.a", b""),
}


def swap(one: Path, other: Path) -> None:
    calls.renameat2(bytes(one), bytes(other), calls.RENAME_EXCHANGE)


def planted(top: Path) -> Path:
    """Make a file of each type; a and d/b are one file, c and d/c1 another."""
    (top / "d").mkdir(parents=True)
    for name, other in (("a", "d/b"), ("c", "d/c1")):
        (top / name).write_bytes(b"c" * 5_000)
        (top / other).hardlink_to(top / name)
    (top / "l").symlink_to("d/b")
    (top / "l1").symlink_to("d/c")
    os.mkfifo(top / "f")
    return top


@pytest.mark.parametrize("name", CHANGES)
def test_each_part_of_a_tree_is_compared(tmp_path: Path, name: str) -> None:
    one, other = planted(tmp_path / "one"), planted(tmp_path / "other")
    alike = tree.differences_in_kind(tree.read(bytes(one)), tree.read(bytes(other)))
    CHANGES[name](other)

    assert alike == []
    assert tree.differences_in_kind(tree.read(bytes(one)), tree.read(bytes(other)))


def test_cached_attributes_are_compared() -> None:
    """A change in the source, which the mount does not see for a day, is a difference."""
    with both_sides(Variant({"cache": "always"})) as sides:
        sides.begin()
        for top in (sides.bare, sides.mount.source):
            os.chown(top / "1/l", 1, 1, follow_symlinks=False)

        with pytest.raises(DifferenceError, match=r"without a listing:\nb'/1/l'"):
            sides.compare()


def test_a_difference_comes_with_a_short_program(sides: Sides) -> None:
    """The error has a program with the necessary steps only, which can be run."""
    sides.known = ()
    for step in [
        ("root", "mkdir", b"n" * 255, 0o755),
        ("user", "open", 1, b"a", os.O_RDONLY, 0),
        ("root", "compare"),
        ("user", "stat", b"a"),
        ("user", "dup", 2, 1),
    ]:
        sides.do(*step)
    with pytest.raises(DifferenceError) as found:
        sides.do("user", "ioctl", 2)

    text = str(differential.shortest(sides, found.value, 30))
    expected = [
        ("user", "open", 1, b"a", os.O_RDONLY, 0),
        ("user", "dup", 2, 1),
        ("user", "ioctl", 2),
    ]
    program = text[text.index("from tests") :]
    asked: list[object] = []
    exec(  # noqa: S102 - the program of the error above
        program.replace("from tests.fuzz.differential import replay\n", ""),
        {"replay": lambda *arguments: asked.extend(arguments)},
    )
    assert asked == [VARIANT, expected]


def test_a_program_without_a_difference_ends() -> None:
    replay(VARIANT, [("member", "mkdir", b"\xff", 0o777), ("member", "compare")])


@pytest.mark.parametrize("again", [0, 1])
def test_relisting_drops_a_begun_listing(tmp_path: Path, again: int) -> None:
    """Relisting by a duplicate does so too, because it shares the position."""
    operations = Operations()
    try:
        operations.act("fill", (bytes(tmp_path), 1, 3))
        operations.act("open", (0, bytes(tmp_path), os.O_RDONLY, 0))
        operations.act("dup", (1, 0))
        operations.act("begin_listing", (0, 100, 1))
        outcome, names = operations.act("end_listing", (1,))
        assert isinstance(names, list)
        assert len(names) == 3
        operations.act("begin_listing", (0, 100, 1))
        operations.act("relist", (again,))

        assert operations.act("end_listing", (0,)) == (outcome, "not begun")
    finally:
        operations.end()


@pytest.mark.parametrize(
    "argument", [b"n" * 255, b"long/" * 200, b"a", bytes(range(60)), 0o777, "user"]
)
def test_an_argument_is_printed_as_source(argument: object) -> None:
    assert eval(differential.literal(argument)) == argument  # noqa: S307
    assert len(differential.literal(argument)) < 200


def test_a_mount_that_hangs_fails_with_the_operation(
    own_sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(differential, "STEP_LIMIT_S", 3.0)
    parent = own_sides.mount.process.pid
    serving = int(Path(f"/proc/{parent}/task/{parent}/children").read_text())
    os.kill(serving, signal.SIGSTOP)
    try:
        with pytest.raises(MountLostError, match=r"hung: user: mkdir\(b'new', 511\)"):
            own_sides.do("user", "mkdir", b"new", 0o777)
    finally:
        os.kill(serving, signal.SIGCONT)
        own_sides.mount.process.wait(20)


def test_a_mount_that_ends_fails_with_the_operation(own_sides: Sides) -> None:
    own_sides.mount.process.terminate()
    own_sides.mount.process.wait(20)

    with pytest.raises(MountLostError, match=r"is gone: user: mkdir"):
        own_sides.do("user", "mkdir", b"new", 0o777)
