"""What the adapter answers: attributes, open flags, and listings."""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
from pyfuse3 import EntryAttributes, FUSEError, InodeT

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.inodes import ROOT
from passthrough.core.listing import Record
from passthrough.identity.attributes import Attributes, Entry
from passthrough.linux.syscalls import RENAME_WHITEOUT
from passthrough.options.choices import CachePolicy
from tests.support.tools.options import effective
from tests.support.tools.pyfuse3_requests import CONTEXT, Recording, operations, request


@pytest.fixture
def attributes(tmp_path: Path) -> os.stat_result:
    return tmp_path.stat()


STAT_FIELDS = (
    *("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks"),
    *("st_atime_ns", "st_mtime_ns", "st_ctime_ns"),
)


@pytest.fixture
def files(source: Path) -> Path:
    """Files whose attributes all differ, and from nothing."""
    (source / "file").write_bytes(b"x" * 10_000)
    os.chown(source / "file", 4_000_000_000, 41_002)
    (source / "file").chmod(0o6751)
    os.link(source / "file", source / "second")
    os.utime(source / "file", ns=(1_234_567_890_123_456_789, -1_500_000_001))
    os.mknod(source / "device", stat.S_IFCHR | 0o600, os.makedev(4000, 70_000))
    with (source / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 43)
    return source


@pytest.mark.parametrize("name", ["file", "device", "sparse", "."])
async def test_every_attribute_is_carried(fs: PassthroughFs, files: Path, name: str) -> None:
    found = (files / name).lstat()
    adapter = operations(fs)
    answers = [await adapter.getattr(InodeT(ROOT), cast("Any", CONTEXT))]
    if name != ".":
        entry = await adapter.lookup(InodeT(ROOT), cast("Any", name.encode()), cast("Any", CONTEXT))
        answers = [entry, await adapter.getattr(entry.st_ino, cast("Any", CONTEXT))]

    for answer in answers:
        carried = {field: getattr(answer, field) for field in STAT_FIELDS}
        assert carried == {field: getattr(found, field) for field in STAT_FIELDS}
        assert answer.st_ino == found.st_ino


async def test_an_entry_carries_its_number_and_timeouts(attributes: os.stat_result) -> None:
    number = 3 << 47 | 5

    entry = await request(
        Recording(Entry(number, attributes, (1.25, 2.5))), "lookup", 1, b"name", CONTEXT
    )
    now = await request(Recording(Attributes(number, attributes, 7.5)), "getattr", 1, CONTEXT)

    assert (entry.st_ino, entry.entry_timeout, entry.attr_timeout) == (number, 1.25, 2.5)
    assert (now.st_ino, now.attr_timeout) == (number, 7.5)


async def test_statfs_carries_every_number() -> None:
    fields = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax")
    host = {f"f_{field}": 1000 + index for index, field in enumerate(fields)}

    answer = await request(Recording(SimpleNamespace(**host)), "statfs", CONTEXT)

    assert {field: getattr(answer, field) for field in host} == host


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Which inodes the kernel is told to forget, and whether their attributes alone."""
    told: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        pyfuse3, "invalidate_inode", lambda number, attr_only: told.append((number, attr_only))
    )
    return told


@pytest.mark.parametrize("policy", CachePolicy)
async def test_pages_survive_an_open_where_the_policy_says_so(
    policy: CachePolicy, source: Path, forgotten: list[tuple[int, bool]]
) -> None:
    """And with `metadata`, where they do not, the size is forgotten along with them."""
    (source / "file").touch()
    fs = PassthroughFs(effective(cache=policy), os.open(source, os.O_PATH))
    try:
        number = fs.lookup(ROOT, b"file").inode_number
        opened = await request(fs, "open", number, os.O_RDONLY, CONTEXT)
        created, _ = await request(fs, "create", ROOT, b"new", 0o600, os.O_RDWR, CONTEXT)
    finally:
        fs.close()

    keep = policy is CachePolicy.ALWAYS
    assert [info.keep_cache for info in (opened, created)] == [keep, keep]
    assert [info.direct_io for info in (opened, created)] == [False, False]
    assert opened.fh != created.fh
    assert forgotten == ([(number, True)] if policy is CachePolicy.METADATA else [])


@pytest.mark.parametrize(
    ("flags", "target", "forgets"),
    [(RENAME_WHITEOUT, b"full", True), (RENAME_WHITEOUT, b"free", False), (0, b"full", False)],
)
async def test_a_refused_whiteout_makes_the_kernel_forget_both_directories(
    source: Path, forgotten: list[tuple[int, bool]], flags: int, target: bytes, forgets: bool
) -> None:
    """The host may have changed them; after a success the kernel forgets by itself."""
    for name in ("old", "top/full/child"):
        (source / name).mkdir(parents=True)
    for directory in (source, source / "old", source / "top"):
        directory.chmod(0o777)
    fs = PassthroughFs(effective(), os.open(source, os.O_PATH))
    try:
        top = fs.lookup(ROOT, b"top").inode_number
        refused = pytest.raises(FUSEError) if target == b"full" else contextlib.nullcontext()
        with refused:
            await request(fs, "rename", ROOT, b"old", top, target, flags, CONTEXT)
    finally:
        fs.close()

    assert forgotten == ([(ROOT, True), (top, True)] if forgets else [])


async def test_names_of_extended_attributes_stay_bytes(fs: PassthroughFs, source: Path) -> None:
    os.setxattr(source, b"user.\xff", b"")

    assert await request(fs, "listxattr", ROOT, CONTEXT) == [b"user.\xff"]


class Reply:
    """What pyfuse3 fills for READDIRPLUS: room for so many entries and no more."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.entries: dict[bytes, tuple[EntryAttributes, int]] = {}

    def add(self, token: object, name: bytes, attributes: EntryAttributes, next_id: int) -> bool:
        assert token is self
        if len(self.entries) == self.room:
            return False
        self.entries[name] = (attributes, next_id)
        return True


@pytest.fixture
def reply(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Reply]:
    def make(room: int) -> Reply:
        made = Reply(room)
        monkeypatch.setattr(pyfuse3, "readdir_reply", made.add)
        return made

    return make


@pytest.fixture
def directory(fs: PassthroughFs, source: Path) -> Iterator[int]:
    """A handle of a directory with six names and the dots."""
    for index in range(6):
        (source / str(index)).touch()
    handle = fs.opendir(ROOT)
    yield handle
    fs.releasedir(handle)


@pytest.mark.parametrize("room", [1, 2, 3, 7, 8, 9])
async def test_a_listing_counts_what_it_delivers(
    source: Path, reply: Callable[[int], Reply], room: int
) -> None:
    """The kernel counts delivered entries but the dots; the one that did not fit is given back."""
    for index in range(6):
        (source / str(index)).touch()
    fs = PassthroughFs(effective(), os.open(source, os.O_PATH))
    handle = fs.opendir(ROOT)
    offset, seen = 0, []
    while True:
        filled = reply(room)
        await request(fs, "readdir", handle, offset, filled)
        if not filled.entries:
            break
        seen += [name for name in filled.entries if name not in {b".", b".."}]
        offset = [*filled.entries.values()][-1][1]
        assert len(fs.inodes) == 1 + len(seen)
        assert {fs.inodes[entry.st_ino].lookups for entry, _ in entries_of(filled)} <= {1}
    fs.close()

    assert sorted(seen) == [b"0", b"1", b"2", b"3", b"4", b"5"]


def entries_of(reply: Reply) -> list[tuple[EntryAttributes, int]]:
    return [value for name, value in reply.entries.items() if name not in {b".", b".."}]


async def test_a_listing_carries_attributes_and_the_dots_number_and_kind(
    fs: PassthroughFs, directory: int, source: Path, reply: Callable[[int], Reply]
) -> None:
    filled = reply(100)

    await request(fs, "readdir", directory, 0, filled)

    for name in (b".", b".."):
        dot, _ = filled.entries[name]
        assert (dot.st_ino, stat.S_IFMT(dot.st_mode)) == (os.stat(source).st_ino, stat.S_IFDIR)
        assert (dot.entry_timeout, dot.attr_timeout) == (0, 0)
    entry, _ = filled.entries[b"3"]
    found = (source / "3").stat()
    assert {field: getattr(entry, field) for field in STAT_FIELDS} == {
        field: getattr(found, field) for field in STAT_FIELDS
    }
    assert (entry.entry_timeout, entry.attr_timeout) == (1.0, 1.0)


@pytest.mark.parametrize("before", [0, 1])
async def test_a_listing_that_fails_keeps_what_was_delivered(
    before: int, reply: Callable[[int], Reply]
) -> None:
    """The kernel counts entries of good replies only; the error waits for the next request."""

    def readdirplus(_handle: int, _offset: int) -> Iterator[tuple[Record, None]]:
        for index in range(before):
            yield Record(index, index + 1, 5, b".."), None
        raise OSError(errno.EIO, "bad disk")

    filled = reply(100)
    fs = SimpleNamespace(readdirplus=readdirplus, squashes=False)

    if before:
        await request(fs, "readdir", 1, 0, filled)
    else:
        with pytest.raises(FUSEError):
            await request(fs, "readdir", 1, 0, filled)

    assert len(filled.entries) == before
