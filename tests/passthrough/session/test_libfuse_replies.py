"""binding.pyx: pyfuse3's objects, filled from replies of the core, and requests made of them.

pyfuse3's own code reads the objects. So the tests fail if the fields lie elsewhere in a new version
of pyfuse3.
"""

import ctypes
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pyfuse3
import pytest
from pyfuse3 import EntryAttributes, FUSEError, ReaddirToken

from passthrough.core import binding
from passthrough.options.choices import CachePolicy
from passthrough.session.kernel import Served
from tests.support.tools import abi, wire
from tests.support.tools.options import effective
from tests.support.tools.pyfuse3_requests import CONTEXT, FH, Recording, request

Ask = Callable[..., Any]

STAT_FIELDS = (
    *("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks"),
    *("st_atime_ns", "st_mtime_ns", "st_ctime_ns"),
)
NODEID, NUMBER = 3 << 32 | 5, 1 << 47 | 9
# In the order of wire.ENTRY_OUT: nodeid, generation, timeouts; then as wire.ATTR_OUT goes on.
TIMES = (1_234_567_890, -2, 1 << 33, 123_456_789, 999_999_999, 5)
ATTR = (NUMBER, 1 << 43, 1 << 34, *TIMES, stat.S_IFCHR | 0o6751, 2, 4_000_000_000, 41_002, 0x4105)
FOUND = {
    "st_mode": stat.S_IFCHR | 0o6751,
    "st_nlink": 2,
    "st_uid": 4_000_000_000,
    "st_gid": 41_002,
    "st_rdev": 0x4105,
    "st_size": 1 << 43,
    "st_blksize": 65_536,
    "st_blocks": 1 << 34,
    "st_atime_ns": 1_234_567_890_123_456_789,
    "st_mtime_ns": -1_000_000_001,
    "st_ctime_ns": (1 << 33) * 1_000_000_000 + 5,
}
ENTRY = wire.ENTRY_OUT.pack(NODEID, 0, 1, 86_400, 250_000_000, 500_000_000, *ATTR, 65_536, 0)


def carried(attributes: EntryAttributes) -> dict[str, int]:
    return {field: getattr(attributes, field) for field in STAT_FIELDS}


@pytest.mark.parametrize("name", ["lookup", "mknod", "mkdir", "link", "symlink", "create"])
def test_an_entry_carries_its_nodeid_its_timeouts_and_every_attribute(name: str) -> None:
    arguments = {
        "lookup": (1, b"name"),
        "mknod": (1, b"name", 0o600, 0),
        "mkdir": (1, b"name", 0o700),
        "link": (1, 1, b"name"),
        "symlink": (1, b"name", b"target"),
        "create": (1, b"name", 0o600, os.O_RDWR),
    }[name]
    reply = ENTRY + wire.OPEN_OUT.pack(FH, 0, 0) if name == "create" else ENTRY

    answer = request(Recording(reply), name, *arguments, CONTEXT)

    entry = answer[1] if name == "create" else answer
    assert (entry.st_ino, entry.generation) == (NODEID, 0)
    assert (entry.entry_timeout, entry.attr_timeout) == (1.25, 86_400.5)
    assert carried(entry) == FOUND


@pytest.mark.parametrize("name", ["getattr", "setattr"])
def test_every_attribute_is_carried(name: str) -> None:
    reply = wire.ATTR_OUT.pack(7, 500_000_000, *ATTR, 65_536, 0)
    changes = (EntryAttributes(), pyfuse3.SetattrFields(), None) if name == "setattr" else ()

    answer = request(Recording(reply), name, NODEID, *changes, CONTEXT)

    assert (answer.st_ino, answer.attr_timeout) == (NUMBER, 7.5)
    assert carried(answer) == FOUND


def test_an_absent_name_may_be_remembered() -> None:
    reply = wire.ENTRY_OUT.pack(0, 0, 2, 0, 500_000_000, 0, *(0,) * 16)

    entry = request(Recording(reply), "lookup", 1, b"name", CONTEXT)

    assert (entry.st_ino, entry.entry_timeout) == (0, 2.5)


@pytest.mark.parametrize("reply", [b"", ENTRY[:-1]])
@pytest.mark.logs("failed by a mistake of this program")
def test_a_reply_that_is_too_short_is_a_mistake(reply: bytes) -> None:
    with pytest.raises(FUSEError) as failed:
        request(Recording(reply), "lookup", 1, b"name", CONTEXT)

    assert failed.value.errno == errno.EIO


def test_statfs_carries_every_number() -> None:
    """Of the numbers of free inodes, a FUSE file system has one."""
    fields = ("blocks", "bfree", "bavail", "files", "ffree", "bsize", "namemax", "frsize")
    host = {f"f_{field}": 1000 + index for index, field in enumerate(fields)}

    answer = request(Recording(wire.STATFS_OUT.pack(*host.values())), "statfs", CONTEXT)

    assert {field: getattr(answer, field) for field in host} == host
    assert answer.f_favail == answer.f_ffree


@pytest.mark.parametrize("names", [[], [b"user.\xff"], [b"user.a", b"user.b"]])
def test_names_of_extended_attributes_stay_bytes(names: list[bytes]) -> None:
    reply = b"".join(name + b"\0" for name in names)

    assert request(Recording(reply), "listxattr", 1, CONTEXT) == names


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (0, (False, False)),
        (abi.FOPEN_KEEP_CACHE | abi.FOPEN_NOFLUSH, (True, False)),
        (abi.FOPEN_DIRECT_IO, (False, True)),
    ],
)
def test_the_flags_of_an_open_file_are_passed_on(flags: int, expected: tuple[bool, bool]) -> None:
    opened = wire.OPEN_OUT.pack(FH, flags, 0)

    info = request(Recording(opened), "open", 1, os.O_RDONLY, CONTEXT)
    created, _ = request(Recording(ENTRY + opened), "create", 1, b"n", 0o600, os.O_RDWR, CONTEXT)

    for found in (info, created):
        assert (found.fh, found.keep_cache, found.direct_io) == (FH, *expected)


class Token(ctypes.Structure):
    """A ReaddirToken of pyfuse3, pyfuse3/handlers.pxi."""

    _fields_ = (
        ("object", ctypes.c_ssize_t * 2),
        ("request", ctypes.c_void_p),
        ("start", ctypes.c_void_p),
        ("next", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
    )


class Listing:
    """A buffer of pyfuse3 that a listing fills, with room for some bytes."""

    def __init__(self, room: int) -> None:
        self.token = ReaddirToken()
        self.inside = Token.from_address(id(self.token))
        self.room = self.inside.size = room

    def content(self) -> bytes:
        """Return what pyfuse3 would answer; frees it."""
        if not self.inside.start:
            return b""
        content = ctypes.string_at(self.inside.start, self.room - self.inside.size)
        ctypes.CDLL(None).free(ctypes.c_void_p(self.inside.start))
        self.inside.start = None
        return content


def test_both_numbers_of_an_inode_reach_the_kernel() -> None:
    """pyfuse3 has one property for them; its listing shows what it has in memory."""
    listing = Listing(4096)

    assert pyfuse3.readdir_reply(listing.token, b"name", binding.entry(ENTRY), cast("Any", 7))

    content = listing.content()
    nodeid, *_, number = wire.ENTRY_OUT.unpack_from(content)[:7]
    assert (nodeid, number) == (NODEID, NUMBER)


def test_the_room_of_a_listing_is_what_pyfuse3_has_left() -> None:
    listing = Listing(4096)
    assert binding.room(listing.token) == 4096

    pyfuse3.readdir_reply(listing.token, b"name", EntryAttributes(), cast("Any", 7))

    size = wire.ENTRY_OUT.size + wire.DIRENT.size + 8
    assert binding.room(listing.token) == 4096 - size
    assert len(listing.content()) == size


@pytest.mark.parametrize("reply", [b"", b"x", b"x" * 4096])
def test_a_listing_is_the_reply_of_the_core(reply: bytes) -> None:
    listing, core = Listing(4096), Recording(reply)

    request(core, "readdir", FH, 5, listing.token)

    assert wire.READ_IN.unpack(core.sent[0].body)[:3] == (FH, 5, 4096)
    assert listing.content() == reply


@pytest.mark.logs("failed by a mistake of this program")
def test_a_listing_that_has_no_room_is_a_mistake() -> None:
    listing = Listing(4095)

    with pytest.raises(FUSEError):
        request(Recording(b"x" * 4096), "readdir", FH, 5, listing.token)

    assert listing.content() == b""


@pytest.fixture
def serve(source: Path, pair: tuple[socket.socket, socket.socket]) -> Iterator[Callable[..., Ask]]:
    """Start a core over *source* with options; gives a function that sends requests to it.

    A thread of its own serves, because serving takes capabilities from a thread. A socket stands in
    for /dev/fuse, which takes notifications.
    """
    device, _ = pair
    started: list[Served] = []
    with ThreadPoolExecutor(1) as thread:

        def start(**options: object) -> Ask:
            fd = os.open(source, os.O_PATH | os.O_DIRECTORY)
            started.append(Served(effective(**options), fd))
            core = started[-1].core
            core.use_device(device.fileno())
            return lambda *words: thread.submit(request, core, *words).result()

        yield start
    for served in started:
        served.close()


@pytest.mark.parametrize("name", ["file", "device", "sparse"])
def test_attributes_of_files_are_those_of_the_host(
    source: Path, serve: Callable[..., Ask], name: str
) -> None:
    (source / "file").write_bytes(b"x" * 10_000)
    os.chown(source / "file", 4_000_000_000, 41_002)
    (source / "file").chmod(0o6751)
    os.link(source / "file", source / "second")
    os.utime(source / "file", ns=(1_234_567_890_123_456_789, -1_500_000_001))
    os.mknod(source / "device", stat.S_IFCHR | 0o600, os.makedev(4000, 70_000))
    with (source / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 43)
    found = (source / name).lstat()
    ask = serve()

    entry = ask("lookup", abi.ROOT_ID, os.fsencode(name), CONTEXT)
    attributes = ask("getattr", entry.st_ino, CONTEXT)

    expected = {field: getattr(found, field) for field in STAT_FIELDS}
    expected["st_rdev"] &= 0xFFFF_FFFF  # FUSE has 32 bits, as the kernel has
    assert carried(entry) == carried(attributes) == expected
    assert attributes.st_ino == found.st_ino


@pytest.mark.parametrize("policy", CachePolicy)
def test_pages_survive_an_open_where_the_policy_says_so(
    source: Path, serve: Callable[..., Ask], policy: CachePolicy
) -> None:
    (source / "file").touch()
    ask = serve(cache=policy)

    number = ask("lookup", abi.ROOT_ID, b"file", CONTEXT).st_ino
    opened = ask("open", number, os.O_RDONLY, CONTEXT)
    created, _ = ask("create", abi.ROOT_ID, b"new", 0o600, os.O_RDWR, CONTEXT)

    keep = policy is CachePolicy.ALWAYS
    assert [info.keep_cache for info in (opened, created)] == [keep, keep]
    assert [info.direct_io for info in (opened, created)] == [False, False]
    assert opened.fh != created.fh


def test_reads_and_writes_follow_the_flags_of_the_open(
    source: Path, serve: Callable[..., Ask]
) -> None:
    """pyfuse3 does not say which flags a file has; with O_APPEND the host appends."""
    (source / "file").write_bytes(b"old")
    ask = serve()
    number = ask("lookup", abi.ROOT_ID, b"file", CONTEXT).st_ino

    for flags in (os.O_RDWR, os.O_RDWR | os.O_APPEND):
        fh = ask("open", number, flags, CONTEXT).fh
        assert ask("write", fh, 0, b"new") == 3
        assert ask("read", fh, 0, 10) == (source / "file").read_bytes()
        ask("release", fh)

    assert (source / "file").read_bytes() == b"newnew"
