"""Inodes held by descriptor and by handle: alike to whoever borrows, apart in what they keep."""

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.inode_file import ByDescriptor, ByHandle, Holding
from passthrough.core.inodes import ROOT
from passthrough.core.listing import Record
from passthrough.linux import syscalls
from passthrough.options.choices import InodeFileHandles
from tests.support.tools.direct import caller, fails, listing, number_of
from tests.support.tools.options import effective

LIMIT_S = 30.0
CALLER = caller(0, 0)
NEVER, PREFER, MANDATORY = InodeFileHandles
MountOn = Callable[[Path, str], None]


@pytest.fixture(params=InodeFileHandles)
def mode(request: pytest.FixtureRequest) -> InodeFileHandles:
    mode: InodeFileHandles = request.param
    return mode


@pytest.fixture
def held(source: Path, mode: InodeFileHandles) -> Iterator[PassthroughFs]:
    """A file system that holds its inodes as *mode* says, `prefer` beyond its budget."""
    fs = serve(source, mode)
    if mode is PREFER:
        fs.inodes.holding.budget = 2
    yield fs
    fs.close()


@pytest.fixture
def by_handle(source: Path) -> Iterator[PassthroughFs]:
    fs = serve(source, MANDATORY)
    yield fs
    fs.close()


@pytest.fixture
def mounted_on() -> Iterator[MountOn]:
    """Mount a file system of a type somewhere, for the length of a test."""
    targets = []

    def mount(target: Path, fstype: str) -> None:
        syscalls.mount(b"none", os.fsencode(target), fstype.encode(), 0, b"")
        targets.append(target)

    yield mount
    for target in reversed(targets):
        syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)


def serve(source: Path, handles: InodeFileHandles) -> PassthroughFs:
    return PassthroughFs(effective(inode_file_handles=handles), os.open(source, os.O_PATH))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_each_operation_reaches_the_file_however_it_is_held(
    held: PassthroughFs, source: Path
) -> None:
    (source / "d").mkdir()
    (source / "d/file").write_bytes(b"content")
    (source / "d/link").symlink_to("target")
    directory = number_of(held, b"d")
    file, link = (held.lookup(directory, name).inode_number for name in (b"file", b"link"))

    held.setxattr(file, b"user.x", b"y")
    held.link(file, directory, b"second")
    held.mkdir(directory, b"sub", 0o755, CALLER)
    held.rename(directory, b"file", directory, b"moved", 0, CALLER)
    entry, handle = held.create(directory, b"new", 0o600, os.O_RDWR, CALLER)
    held.release(handle)
    handle = held.open(file, os.O_RDONLY)

    assert held.read(handle, 0, 10) == b"content"
    assert held.readlink(link) == b"target"
    assert held.getxattr(file, b"user.x") == b"y"
    assert held.getattr(file).stat.st_nlink == 2
    assert held.getattr(entry.inode_number).stat.st_ino == (source / "d/new").stat().st_ino
    assert held.lookup(directory, b"second").inode_number == file
    assert set(listing(held, directory)) == {
        b".",
        b"..",
        b"link",
        b"second",
        b"sub",
        b"moved",
        b"new",
    }
    held.release(handle)


def test_descriptors_are_kept_up_to_the_budget_and_none_beyond(source: Path) -> None:
    for index in range(20):
        (source / str(index)).touch()
    fs = serve(source, PREFER)
    fs.inodes.holding.budget = 5
    before = open_descriptors()

    numbers = [number_of(fs, b"%d" % index) for index in range(20)]

    kinds = [type(fs.inodes[number]) for number in numbers]
    assert kinds == [ByDescriptor] * 5 + [ByHandle] * 15
    assert open_descriptors() == before + 5
    fs.forget(numbers[0], 1)
    fs.forget(numbers[10], 1)
    assert isinstance(fs.inodes[number_of(fs, b"10")], ByDescriptor)
    fs.close()


def test_the_budget_is_half_of_the_descriptors_there_may_be() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, limits[1]))
    try:
        budgets = {mode: Holding(mode).budget for mode in InodeFileHandles}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert (budgets[PREFER], budgets[MANDATORY]) == (300, 0)
    assert budgets[NEVER] > 1 << 40


def test_directories_in_use_stay_open_and_only_so_many(
    by_handle: PassthroughFs, source: Path
) -> None:
    for index in range(200):
        (source / f"d{index}").mkdir()
        (source / f"d{index}/f").touch()
    before = open_descriptors()

    directories = [number_of(by_handle, b"d%d" % index) for index in range(200)]
    with patch.object(syscalls, "open_by_handle_at", wraps=syscalls.open_by_handle_at) as opening:
        for _ in range(1000):
            by_handle.lookup(directories[0], b"f")

    assert opening.call_count == 1
    assert open_descriptors() <= before + 64
    for number in directories:
        by_handle.forget(number, 1)
    assert open_descriptors() == before


def test_a_file_deleted_on_the_host_is_stale(by_handle: PassthroughFs, source: Path) -> None:
    (source / "file").touch()
    number = number_of(by_handle, b"file")
    (source / "file").unlink()

    fails(errno.ESTALE, lambda: by_handle.getattr(number))
    fails(errno.ESTALE, lambda: by_handle.open(number, os.O_RDONLY))


def test_a_reused_number_is_a_new_inode(by_handle: PassthroughFs, source: Path) -> None:
    """The host gives the number again at once, and the kernel still knows the old inode."""
    (source / "old").touch()
    host_number = (source / "old").stat().st_ino
    old = number_of(by_handle, b"old")
    (source / "old").unlink()
    name = _created_with(source, host_number)

    new = number_of(by_handle, name)

    assert new != old == host_number
    assert number_of(by_handle, name) == new
    assert by_handle.getattr(new).stat.st_ino == host_number
    fails(errno.ESTALE, lambda: by_handle.getattr(old))
    by_handle.forget(old, 1)
    assert number_of(by_handle, name) == new
    by_handle.forget(new, 3)
    assert number_of(by_handle, name) == host_number


def _created_with(source: Path, host_number: int) -> bytes:
    for index in range(100_000):
        path = source / f"new{index}"
        path.touch()
        if path.stat().st_ino == host_number:
            return os.fsencode(path.name)
    pytest.fail(f"the file system of {source} gives no inode number twice")


@pytest.mark.parametrize("removal", ["unlink", "rmdir", "rename"])
def test_what_is_removed_through_the_volume_keeps_its_number(
    by_handle: PassthroughFs, source: Path, removal: str
) -> None:
    """So that the next file, which the host would give it, has the host's number too."""
    if removal == "rmdir":
        (source / "old").mkdir()
    else:
        (source / "old").touch()
    before = open_descriptors()
    old = number_of(by_handle, b"old")
    if removal == "rename":
        (source / "other").touch()
        by_handle.rename(ROOT, b"other", ROOT, b"old", 0, CALLER)
    else:
        getattr(by_handle, removal)(ROOT, b"old")

    assert open_descriptors() > before
    assert by_handle.getattr(old).stat.st_nlink == 0
    for index in range(50):
        created = by_handle.mknod(ROOT, b"new%d" % index, 0o100644, 0, CALLER)
        assert created.inode_number == created.stat.st_ino != old
    by_handle.forget(old, 1)
    assert open_descriptors() == before


def test_a_removal_that_fails_or_leaves_a_link_keeps_nothing(
    by_handle: PassthroughFs, source: Path
) -> None:
    (source / "full/inner").mkdir(parents=True)
    (source / "a").touch()
    os.link(source / "a", source / "b")
    for name in (b"full", b"a"):
        number_of(by_handle, name)
    before = open_descriptors()

    fails(errno.ENOTEMPTY, lambda: by_handle.rmdir(ROOT, b"full"))
    fails(errno.ENOENT, lambda: by_handle.unlink(ROOT, b"missing"))
    by_handle.unlink(ROOT, b"a")

    assert open_descriptors() == before


def test_a_removal_succeeds_whatever_becomes_of_the_number(
    by_handle: PassthroughFs, source: Path
) -> None:
    """The name is gone by then: an error would say that it is not."""
    (source / "file").touch()
    number_of(by_handle, b"file")
    with patch.object(syscalls, "name_to_handle_at", side_effect=OSError(errno.ESTALE, "gone")):
        by_handle.unlink(ROOT, b"file")

    assert not (source / "file").exists()


def test_one_file_is_one_inode_by_whatever_link(held: PassthroughFs, source: Path) -> None:
    for index in range(5):
        (source / f"filler{index}").touch()
        number_of(held, b"filler%d" % index)
    (source / "a").touch()
    os.link(source / "a", source / "b")

    assert number_of(held, b"a") == number_of(held, b"b") == (source / "a").stat().st_ino


def test_a_listing_does_not_end_early_where_descriptors_run_out(source: Path) -> None:
    """Who copies the directory would believe that it was all."""
    for index in range(50):
        (source / str(index)).touch()
    fs = serve(source, NEVER)
    handle = fs.opendir(ROOT)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 20, limits[1]))
    listed: list[Record] = []

    def go_on() -> None:
        offset = listed[-1].end if listed else 0
        listed.extend(record for record, _ in fs.readdirplus(handle, offset))

    try:
        fails(errno.EMFILE, go_on)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    go_on()

    names = [record.name for record in listed]
    assert sorted(names) == sorted([b".", b"..", *(b"%d" % index for index in range(50))])
    fs.close()


@pytest.mark.logs("some files are held by descriptors: the file system has no file handles")
def test_a_source_without_handles_is_served_by_descriptors() -> None:
    fs = serve(Path("/proc"), PREFER)
    fs.inodes.holding.budget = 0

    assert isinstance(fs.inodes[number_of(fs, b"version")], ByDescriptor)
    fs.close()


@pytest.mark.logs("some files are held by descriptors: the file system has no file handles")
def test_a_mount_without_handles_is_served_by_descriptors(
    by_handle: PassthroughFs, source: Path, mounted_on: MountOn
) -> None:
    for name in ("proc", "tmpfs"):
        (source / name).mkdir()
        mounted_on(source / name, name)
    (source / "tmpfs/file").touch()

    version = by_handle.inodes[number_of(by_handle, b"proc", b"version")]
    file = by_handle.inodes[number_of(by_handle, b"tmpfs", b"file")]

    assert isinstance(version, ByDescriptor)
    assert isinstance(file, ByHandle)
    assert by_handle.getattr(file.number).stat.st_ino == (source / "tmpfs/file").stat().st_ino


@pytest.mark.logs("needs CAP_DAC_READ_SEARCH")
def test_a_process_without_the_capability_goes_without_handles(source: Path) -> None:
    refused = OSError(errno.EPERM, os.strerror(errno.EPERM))
    with patch.object(syscalls, "open_by_handle_at", side_effect=refused):
        fs = serve(source, MANDATORY)
    (source / "file").touch()

    assert isinstance(fs.inodes[number_of(fs, b"file")], ByDescriptor)
    fs.close()


def test_counts_balance_with_many_threads(held: PassthroughFs, source: Path) -> None:
    """Threads that look up, use and forget the same few files and directories at once."""
    threads, rounds = 4, 100
    for index in range(4):
        (source / f"d{index}").mkdir()
        (source / f"d{index}/f").touch()
    before = open_descriptors()
    start = threading.Barrier(threads, timeout=LIMIT_S)

    def work() -> None:
        start.wait()
        for _ in range(rounds):
            for index in range(4):
                directory = held.lookup(ROOT, b"d%d" % index).inode_number
                file = held.lookup(directory, b"f").inode_number
                assert held.getattr(file).stat.st_ino == file
                held.forget(file, 1)
                held.forget(directory, 1)

    with ThreadPoolExecutor(threads) as pool:
        for ended in [pool.submit(work) for _ in range(threads)]:
            ended.result(LIMIT_S)

    assert len(held.inodes) == 1
    assert open_descriptors() == before
