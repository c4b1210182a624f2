"""Inodes in use: lent, found, counted, removed; on real files, and with no descriptor left over."""

import errno
import os
import resource
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from passthrough.core import names
from passthrough.linux import syscalls
from tests.passthrough.native.probe_inodes import NOWHERE, Probe, mount_id, name_error
from tests.support.tools.direct import descriptors_below, fails
from tests.support.tools.mounts import MS_BIND

ROOT = 1
LIMIT_S = 60.0
RECENT = 64
NO_HANDLES = 3
ALL_HITS = 0xFFFF_FFFF
DIRECTORIES = 1


class Python:
    """Stands for passthrough/session/rare.py."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, int, bytes]] = []

    def report(self, kind: int, number: int, name: bytes) -> None:
        self.reports.append((kind, number, name))

    def open_across(self, directory_fd: int, name: bytes) -> int:
        return names.open_across(directory_fd, name)


Serve = Callable[..., Probe]


@pytest.fixture
def python() -> Python:
    return Python()


@pytest.fixture
def serve(source: Path, python: Python) -> Iterator[Serve]:
    """Serve the source; each probe is closed at the end, and leaves no descriptor."""
    before = open_descriptors()
    probes = []

    def serve(**options: int) -> Probe:
        probes.append(Probe(os.fsencode(source), python, **options))
        return probes[-1]

    yield serve
    for probe in probes:
        probe.close()
    assert open_descriptors() == before


@pytest.fixture
def by_handle(serve: Serve) -> Probe:
    return serve(budget=0)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def number_of(probe: Probe, *path: bytes) -> int:
    nodeid = ROOT
    for name in path:
        nodeid = probe.find(nodeid, name)[0]
    return nodeid


def lookups(probe: Probe, nodeid: int) -> int:
    return int((probe.inode(nodeid) or {"lookups": 0})["lookups"])


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"a/", b"/a"])
def test_what_leads_elsewhere_is_no_name(name: bytes) -> None:
    assert name_error(name) == errno.EINVAL


@pytest.mark.parametrize("name", [b"a", b"...", b".a", b"..a", b"a.", b"\n", b"\xff", b"x" * 300])
def test_any_other_component_is_a_name(name: bytes) -> None:
    assert name_error(name) == 0


# Lent


def test_an_inode_held_by_descriptor_lends_it(serve: Serve, source: Path) -> None:
    (source / "file").touch()
    probe = serve()
    nodeid = number_of(probe, b"file")
    loan, fd = probe.lend(nodeid)
    assert fd == (probe.inode(nodeid) or {})["fd"]
    probe.give_back(loan)
    probe.give_back(loan)
    assert os.fstat(fd).st_ino == (source / "file").stat().st_ino


def test_a_file_held_by_handle_is_opened_for_each_loan(by_handle: Probe, source: Path) -> None:
    (source / "file").touch()
    nodeid = number_of(by_handle, b"file")
    before = open_descriptors()
    loans = [by_handle.lend(nodeid) for _ in range(2)]
    assert len({fd for _, fd in loans}) == 2
    assert os.path.sameopenfile(*(fd for _, fd in loans))
    for loan, _ in loans:
        by_handle.give_back(loan)
        by_handle.give_back(loan)
    assert open_descriptors() == before


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


def test_only_so_many_directories_stay_open_those_used_last(
    by_handle: Probe, source: Path
) -> None:
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
    before = open_descriptors()
    (source / "file").unlink()
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
    """Without a range, no owner is mapped."""
    (source / "file").touch()
    for budget in (0, 1 << 60):
        probe = serve(lacks_owners=False, budget=budget)
        nodeid = number_of(probe, b"file")
        assert probe.changing(nodeid)
        assert probe.changing(ROOT)


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


def test_a_missing_name_is_missing_whatever_comes_first(serve: Serve) -> None:
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
    for budget in (0, 1 << 60):
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


def test_dots_of_what_left_the_source_are_stale(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
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


def test_a_neighbour_whose_path_begins_alike_is_not_below(
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
        syscalls.setfsuid(41_001)
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


def test_a_removal_that_fails_or_leaves_a_link_pins_nothing(
    by_handle: Probe, source: Path
) -> None:
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


# Mounts


@pytest.fixture
def bound() -> Iterator[list[Path]]:
    """Where a test has mounted something, which goes with the test."""
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
@pytest.mark.parametrize("budget", [0, 1 << 60], ids=["handles", "descriptors"])
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
    for budget in (0, 1 << 60):
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


def test_a_volume_may_hide_what_is_mounted(
    serve: Serve, source: Path, bound: list[Path]
) -> None:
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
    for budget in (0, 1 << 60):
        probe = serve(budget=budget)
        before = open_descriptors()
        fails(errno.ENFILE, lambda: probe.grant(os.open(source, os.O_PATH), place=400))  # noqa: B023
        fails(errno.EBADF, lambda: probe.grant(-1))  # noqa: B023
        assert open_descriptors() == before
        nodeid = probe.grant(os.open(source / "file", os.O_PATH))[0]
        assert probe.grant(os.open(source / "file", os.O_PATH), place=NOWHERE)[0] == nodeid
        probe.forget(nodeid, 2)
        assert open_descriptors() == before


def test_lookups_fail_and_leak_nothing_where_descriptors_run_out(
    serve: Serve, source: Path, bound: list[Path]
) -> None:
    for name in ("d", "b"):
        (source / name).mkdir()
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
    for budget in (0, 2, 1 << 60):
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


@pytest.mark.parametrize("budget", [0, 1 << 60], ids=["handles", "descriptors"])
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
