"""names.pyx: a lookup finds the file that has the name now, by statx(2) or openat2(2)."""

import errno
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.passthrough.core.probe_inodes import EXPECTED, Probe, name_error
from tests.support.tools import host_calls
from tests.support.tools.checks import fails
from tests.support.tools.core_inodes import (
    ALL_HITS,
    BY_DESCRIPTOR,
    LIMIT_S,
    ROOT,
    Python,
    Serve,
    lookups,
    number_of,
    open_descriptors,
)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"a/", b"/a"])
def test_what_leads_elsewhere_is_no_name(name: bytes) -> None:
    assert name_error(name) == errno.EINVAL


@pytest.mark.parametrize("name", [b"a", b"...", b".a", b"..a", b"a.", b"\n", b"\xff", b"x" * 300])
def test_any_other_component_is_a_name(name: bytes) -> None:
    assert name_error(name) == 0


# Found


def make_each_kind(source: Path) -> list[bytes]:
    (source / "file").write_bytes(b"x" * 5000)
    (source / "directory").mkdir()
    (source / "symlink").symlink_to("/")
    os.mkfifo(source / "fifo")
    os.mknod(source / "device", stat.S_IFCHR | 0o600, os.makedev(259, 1048575))
    os.mknod(source / "socket", stat.S_IFSOCK)
    os.chown(source / "file", 70_000, 80_000)
    os.utime(source / "file", ns=(-1_500_000_001, 1 << 33))
    return [b"file", b"directory", b"symlink", b"fifo", b"device", b"socket"]


def test_both_ways_of_a_lookup_find_the_same(serve: Serve, source: Path) -> None:
    probe = serve(statx_first=True)
    for name in make_each_kind(source):
        probe.set_hits(0)
        opened = probe.find(ROOT, name)
        assert probe.hits() == 0
        probe.set_hits(ALL_HITS - 1)
        known = probe.find(ROOT, name)
        assert probe.hits() == ALL_HITS - 2
        assert known == opened
        assert lookups(probe, known[0]) == 2
        assert probe.stat(known[0]) == known[3]


@pytest.mark.parametrize("expected", EXPECTED.values(), ids=EXPECTED)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("budget", [BY_DESCRIPTOR, 0], ids=["descriptors", "handles"])
def test_a_wrong_expectation_changes_nothing_but_the_calls(
    serve: Serve, source: Path, expected: int, *, known: bool, budget: int
) -> None:
    probe = serve(statx_first=True, budget=budget)
    for name in make_each_kind(source):
        probe.set_hits(ALL_HITS)
        before = probe.find(ROOT, name) if known else None
        probe.set_hits(ALL_HITS)
        found = probe.find(ROOT, name, expected)
        assert probe.hits() == ALL_HITS or expected == EXPECTED["unsure"]
        assert before in {None, found}
        assert probe.stat(found[0]) == found[3]
        assert lookups(probe, found[0]) == 1 + known
    fails(errno.ENOENT, lambda: probe.find(ROOT, b"missing", expected))


def test_a_volume_on_a_server_never_begins_with_statx(serve: Serve, source: Path) -> None:
    (source / "file").touch()
    probe = serve()
    probe.set_hits(ALL_HITS - 1)
    for _ in range(40):
        number_of(probe, b"file")
    assert probe.hits() == ALL_HITS - 1


def test_statx_comes_first_as_long_as_it_is_mostly_enough(serve: Serve, source: Path) -> None:
    for index in range(600):
        (source / f"{index}").touch()
    probe = serve(statx_first=True)
    probe.set_hits(ALL_HITS)
    for index in range(600):
        number_of(probe, b"%d" % index)
    # 17 misses, then one for each 16 names.
    assert probe.hits() == 0

    def tries(numbers: range) -> int:
        count, before = 0, probe.hits()
        for index in numbers:
            number_of(probe, b"%d" % index)
            count += probe.hits() != before
            before = probe.hits()
        return count

    probe.set_hits(0)
    assert tries(range(160)) == 10
    assert tries(range(160, 256)) == 6
    assert probe.hits() == 0xFFFF
    assert tries(range(256, 270)) == 14
    probe.set_hits(0)
    fails(errno.ENOENT, lambda: probe.find(ROOT, b"missing"))


def test_a_missing_name_is_missing_with_and_without_statx(serve: Serve) -> None:
    probe = serve(statx_first=True)
    for hits in (0, ALL_HITS):
        probe.set_hits(hits)
        fails(errno.ENOENT, lambda: probe.find(ROOT, b"missing"))
        assert probe.hits() == hits
        fails(errno.ENAMETOOLONG, lambda: probe.find(ROOT, b"x" * 256))


def test_statx_is_not_believed_of_a_file_held_by_handle(serve: Serve, source: Path) -> None:
    (source / "file").touch()
    probe = serve(statx_first=True, budget=0)
    nodeid = number_of(probe, b"file")
    probe.set_hits(ALL_HITS)
    assert number_of(probe, b"file") == nodeid
    assert probe.hits() == ALL_HITS - 1
    assert lookups(probe, nodeid) == 2


def replaced(source: Path, name: str) -> None:
    """Give the number of a file that nothing holds to another one, by the same name."""
    number = (source / name).stat().st_ino
    (source / name).unlink()
    for index in range(100_000):
        path = source / f"new{index}"
        path.touch()
        if path.stat().st_ino == number:
            path.rename(source / name)
            return
    pytest.fail(f"the file system of {source} gives no inode number twice")


@pytest.mark.usefixtures("on_ext4")
def test_a_file_replaced_after_statx_is_not_taken_for_the_one_before(
    serve: Serve, source: Path
) -> None:
    """Its number is the same, and the table knows the new file by now."""
    (source / "file").touch()
    probe = serve()
    found: list[int] = []

    def replace() -> None:
        probe.forget(nodeid)
        replaced(source, "file")
        found.append(number_of(probe, b"file"))

    nodeid = number_of(probe, b"file")
    assert probe.find_known(ROOT, source / "file", replace) is None
    assert lookups(probe, nodeid) == 0
    assert lookups(probe, found[0]) == 1


def test_a_file_that_comes_to_be_known_after_statx_is_opened(serve: Serve, source: Path) -> None:
    (source / "file").touch()
    probe = serve()

    assert probe.find_known(ROOT, source / "file", lambda: number_of(probe, b"file")) is None
    assert probe.find_known(ROOT, source / "file", lambda: None) is not None


def test_a_file_that_is_renamed_after_statx_is_the_one_found(serve: Serve, source: Path) -> None:
    for name in ("file", "other"):
        (source / name).touch()
    probe = serve()
    nodeid = number_of(probe, b"file")
    found = probe.find_known(
        ROOT, source / "file", lambda: (source / "other").rename(source / "file")
    )
    assert found is not None
    assert found[0] == nodeid


def test_lookups_are_exact_while_files_are_replaced(serve: Serve, source: Path) -> None:
    """Each file has a size of its own, whatever its number: found and held are one file."""
    probe = serve(statx_first=True)
    known = [b"%d" % index for index in range(8)]
    sizes = iter(range(1, 1 << 40))

    def replace(name: str) -> None:
        with (source / "spare").open("wb") as file:
            file.truncate(next(sizes))
        (source / "spare").rename(source / name)

    for name in known:
        replace(name.decode())
    ended = threading.Event()

    def keep_replacing() -> None:
        while not ended.is_set():
            for name in known:
                replace(name.decode())

    with ThreadPoolExecutor(4) as pool:
        replacing = pool.submit(keep_replacing)
        lookups = [pool.submit(probe.churn, known, 40_000) for _ in range(3)]
        counts = [lookup.result(LIMIT_S) for lookup in lookups]
        ended.set()
        replacing.result(LIMIT_S)

    assert [wrong for wrong, _ in counts] == [0] * 3
    assert sum(enough for _, enough in counts) > 1_000


# Dots


def test_dots_lead_to_where_the_directory_is_now(serve: Serve, source: Path) -> None:
    (source / "a/b/c").mkdir(parents=True)
    (source / "elsewhere").mkdir()
    for budget in (0, BY_DESCRIPTOR):
        probe = serve(budget=budget)
        a, elsewhere = number_of(probe, b"a"), number_of(probe, b"elsewhere")
        b, c = number_of(probe, b"a", b"b"), number_of(probe, b"a", b"b", b"c")
        assert probe.find_dot(c)[0] == c
        assert probe.find_dot(c, parent=True)[0] == b
        assert probe.find_dot(b, parent=True)[0] == a
        assert probe.find_dot(a, parent=True)[0] == ROOT
        assert probe.find_dot(ROOT)[0] == probe.find_dot(ROOT, parent=True)[0] == ROOT
        (source / "a/b").rename(source / "elsewhere/moved")
        assert probe.find_dot(c, parent=True)[0] == b
        assert probe.find_dot(b, parent=True)[0] == elsewhere
        (source / "elsewhere/moved").rename(source / "a/b")
        probe.close()


def test_dots_of_what_left_the_source_are_stale(serve: Serve, source: Path, tmp_path: Path) -> None:
    (source / "in/inner").mkdir(parents=True)
    (source / "removed").mkdir()
    probe = serve()
    moved, removed = number_of(probe, b"in"), number_of(probe, b"removed")
    inner = number_of(probe, b"in", b"inner")
    before = open_descriptors()
    (source / "in").rename(tmp_path / "out")
    (source / "removed").rmdir()
    fails(errno.ESTALE, lambda: probe.find_dot(moved, parent=True))
    fails(errno.ESTALE, lambda: probe.find_dot(inner, parent=True))
    fails(errno.ESTALE, lambda: probe.find_dot(removed, parent=True))
    assert probe.find_dot(moved)[0] == moved
    assert open_descriptors() == before


def test_a_directory_beside_with_a_longer_name_is_not_below(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    (source / "d").mkdir()
    probe = serve()
    nodeid = number_of(probe, b"d")
    beside = tmp_path / (source.name + "-beside")
    beside.mkdir()
    (source / "d").rename(beside / "d")
    fails(errno.ESTALE, lambda: probe.find_dot(nodeid, parent=True))
    fails(errno.ESTALE, lambda: probe.check_reachable(nodeid))


def test_a_file_has_no_parent(serve: Serve, source: Path) -> None:
    (source / "file").touch()
    probe = serve()
    nodeid = number_of(probe, b"file")
    fails(errno.ENOTDIR, lambda: probe.find_dot(nodeid, parent=True))
    assert probe.find_dot(nodeid)[0] == nodeid


def test_the_source_may_be_the_top_of_all(python: Python, tmp_path: Path) -> None:
    """The path of the root then ends with a slash itself."""
    probe = Probe(b"/", python)
    nodeid = ROOT
    for part in tmp_path.parts[1:]:
        above, nodeid = nodeid, probe.find(nodeid, os.fsencode(part))[0]
    assert probe.find_dot(nodeid, parent=True)[0] == above
    probe.check_reachable(nodeid)
    probe.close()


def as_user(call: Callable[[], object]) -> Callable[[], object]:
    """Make a call with the host's checks for a user without capabilities, in a thread."""

    def act() -> object:
        host_calls.setfsuid(41_001)
        return call()

    def calls() -> object:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(act).result(LIMIT_S)

    return calls


def test_what_cannot_be_reached_by_name_is_refused(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    (source / "open/inner").mkdir(parents=True)
    (source / "open/inner/file").touch()
    tmp_path.chmod(0o755)
    probe = serve()
    nodeid = number_of(probe, b"open", b"inner", b"file")
    before = open_descriptors()
    as_user(lambda: probe.check_reachable(nodeid))()
    as_user(lambda: probe.check_reachable(ROOT))()
    (source / "open").chmod(0o700)
    probe.check_reachable(nodeid)
    fails(errno.EACCES, as_user(lambda: probe.check_reachable(nodeid)))
    (source / "open").chmod(0o755)
    (source / "open/inner/file").rename(source / "moved")
    as_user(lambda: probe.check_reachable(nodeid))()
    (source / "moved").unlink()
    as_user(lambda: probe.check_reachable(nodeid))()
    (source / "moved (deleted)").symlink_to("file")
    fails(errno.ESTALE, lambda: probe.check_reachable(nodeid))
    assert open_descriptors() == before
