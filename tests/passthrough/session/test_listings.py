"""OPENDIR, READDIR, READDIRPLUS and RELEASEDIR, as bytes of requests and replies."""

import contextlib
import errno
import itertools
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from passthrough.options.choices import CachePolicy, SessionKind, Squash, Submounts
from passthrough.session.abi import Opcode
from passthrough.worker import fuse_mount
from tests.support.fakes.kernel import Connect, Kernel, Reply, attributes, listed
from tests.support.tools import abi, wire
from tests.support.tools.bodies import BODIES, READ
from tests.support.tools.options import effective

DOTS = {b".", b".."}
ROOM = 4096
both = pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])


def opendir(kernel: Kernel, nodeid: int = abi.ROOT_ID) -> int:
    reply = kernel.ask(Opcode.OPENDIR, BODIES["OPENDIR"], nodeid)
    assert reply.error == 0, os.strerror(reply.error)
    return int(wire.OPEN_OUT.unpack(reply.body)[0])


def releasedir(kernel: Kernel, handle: int) -> None:
    assert kernel.ask(Opcode.RELEASEDIR, wire.RELEASE_IN.pack(handle, 0, 0, 0)).error == 0


def read(  # noqa: PLR0917 - what the request carries
    kernel: Kernel,
    handle: int,
    offset: int = 0,
    room: int = ROOM,
    opcode: int = Opcode.READDIR,
    nodeid: int = abi.ROOT_ID,
) -> Reply:
    return kernel.ask(opcode, READ.pack(handle, offset, room, 0, 0, 0), nodeid)


def end(reply: Reply, opcode: int) -> int:
    """Return the offset that follows the last entry of a reply."""
    assert reply.error == 0, os.strerror(reply.error)
    *_, (_, _, offset, _) = listed(reply.body, plus=opcode == Opcode.READDIRPLUS).values()
    return offset


def names(
    kernel: Kernel, handle: int = 0, opcode: int = Opcode.READDIR, nodeid: int = abi.ROOT_ID
) -> set[bytes]:
    """Return all names of a directory, each of which must be listed once."""
    found: set[bytes] = set()
    offset = 0
    while (reply := read(kernel, handle, offset, opcode=opcode, nodeid=nodeid)).body:
        part = listed(reply.body, plus=opcode == Opcode.READDIRPLUS)
        assert not part.keys() & found
        found |= part.keys()
        offset = end(reply, opcode)
    assert reply.error == 0, os.strerror(reply.error)
    return found


@contextlib.contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """Limit this process to *more* descriptors beside those that are open."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(fd) for fd in os.listdir("/proc/self/fd")}
    free = itertools.filterfalse(taken.__contains__, itertools.count())
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (next(itertools.islice(free, more, None)), limits[1])
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@both
def test_names_that_vanish_while_they_are_listed(kernel: Kernel, source: Path, opcode: int) -> None:
    """Names alone are listed as they were; a lookup leaves out the ones that it finds no more."""
    for number in range(60):
        (source / f"{number:02}").touch()
    handle = opendir(kernel)
    first = read(kernel, handle, room=1600, opcode=opcode)
    before = listed(first.body, plus=opcode == Opcode.READDIRPLUS).keys()
    for number in range(60):
        (source / f"{number:02}").unlink()
    (source / "new").touch()

    rest: set[bytes] = set()
    offset = end(first, opcode)
    while body := read(kernel, handle, offset, opcode=opcode).body:
        rest |= listed(body, plus=opcode == Opcode.READDIRPLUS).keys()
        offset = end(Reply(0, 0, body), opcode)
    releasedir(kernel, handle)

    everything = {b"%02d" % number for number in range(60)} | DOTS
    still = everything if opcode == Opcode.READDIR else DOTS
    assert rest - {b"new"} == still - before


@both
def test_padding_is_zero_and_names_are_whole(kernel: Kernel, source: Path, opcode: int) -> None:
    expected = {b"x" * length for length in (1, 7, 8, 9, 16, 255)} | {b"\xff\n ", *DOTS}
    for name in expected - DOTS:
        os.mknod(os.path.join(os.fsencode(source), name))
    # The reply is written over the one before.
    handle = opendir(kernel)
    for _ in range(2):
        body = read(kernel, handle, opcode=opcode).body
        position = 0
        while position < len(body):
            position += wire.ENTRY_OUT.size if opcode == Opcode.READDIRPLUS else 0
            _, _, length, _ = wire.DIRENT.unpack_from(body, position)
            position += wire.DIRENT.size + length
            assert body[position : position + -length % 8] == bytes(-length % 8)
            position += -length % 8
        assert listed(body, plus=opcode == Opcode.READDIRPLUS).keys() == expected
    releasedir(kernel, handle)


@both
@pytest.mark.parametrize("room", [0, 1, 24, 31])
def test_a_reply_without_room_has_no_entry(kernel: Kernel, opcode: int, room: int) -> None:
    handle = opendir(kernel)

    reply = read(kernel, handle, room=room, opcode=opcode)
    assert (reply.error, reply.body) == (0, b"")
    assert names(kernel, handle, opcode) == DOTS

    releasedir(kernel, handle)


@pytest.mark.parametrize(("packed", "place"), [(False, 0), (True, 1)])
@both
def test_a_file_has_one_number_in_listings_and_attributes(
    source: Path, connect: Connect, opcode: int, packed: bool, place: int
) -> None:
    """The dots included: the parent of the root is the root."""
    (source / "dir").mkdir()
    (source / "dir" / "sub").mkdir()
    kernel = connect(effective(session=SessionKind.KERNEL, use_host_ino=packed))
    directory = kernel.lookup(b"dir")
    plus = opcode == Opcode.READDIRPLUS
    top, below = opendir(kernel), opendir(kernel, directory)

    of_root = listed(read(kernel, top, opcode=opcode).body, plus=plus)
    of_dir = listed(read(kernel, below, opcode=opcode, nodeid=directory).body, plus=plus)

    inos = {path: place << 47 | (source / path).stat().st_ino for path in (".", "dir", "dir/sub")}
    assert {name: ino for name, (_, ino, _, _) in of_root.items()} == {
        b".": inos["."],
        b"..": inos["."],
        b"dir": inos["dir"],
    }
    assert {name: ino for name, (_, ino, _, _) in of_dir.items()} == {
        b".": inos["dir"],
        b"..": inos["."],
        b"sub": inos["dir/sub"],
    }
    for nodeid, path in ((abi.ROOT_ID, "."), (directory, "dir")):
        reply = kernel.ask(Opcode.GETATTR, wire.GETATTR_IN.pack(0, 0), nodeid)
        assert attributes(reply.body)["ino"] == inos[path]


def test_the_type_of_an_entry_is_that_of_its_file(kernel: Kernel, source: Path) -> None:
    (source / "file").touch()
    (source / "dir").mkdir()
    (source / "link").symlink_to("nowhere")
    os.mkfifo(source / "fifo")
    handle = opendir(kernel)

    found = listed(read(kernel, handle, opcode=Opcode.READDIRPLUS).body, plus=True)
    releasedir(kernel, handle)

    assert {name: kind for name, (_, _, _, kind) in found.items()} == {
        b".": 4,
        b"..": 4,
        b"file": 8,
        b"dir": 4,
        b"link": 10,
        b"fifo": 1,
    }
    assert {name for name, (nodeid, *_) in found.items() if not nodeid} == DOTS


def test_a_listing_does_not_end_early_if_descriptors_run_out(kernel: Kernel, source: Path) -> None:
    """A program that copies the directory would believe that it was all."""
    for number in range(50):
        (source / str(number)).touch()
    handle = opendir(kernel)
    found: set[bytes] = set()
    offset = 0
    with few_descriptors(20):
        while not (reply := read(kernel, handle, offset, 1 << 16, Opcode.READDIRPLUS)).error:
            found |= listed(reply.body, plus=True).keys()
            offset = end(reply, Opcode.READDIRPLUS)
    assert reply.error == errno.EMFILE
    assert 0 < len(found) < 50

    rest = listed(read(kernel, handle, offset, 1 << 16, Opcode.READDIRPLUS).body, plus=True).keys()
    releasedir(kernel, handle)

    assert not found & rest
    assert found | rest == {b"%d" % number for number in range(50)} | DOTS


@pytest.mark.logs("'dead' is left out of a listing")
def test_a_dead_mount_does_not_hide_its_neighbours(kernel: Kernel, source: Path) -> None:
    (source / "alive").touch()
    (source / "dead").mkdir()
    fuse_fd = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={fuse_fd},rootmode=40000,user_id=0,group_id=0"
    syscalls.mount(b"dead", os.fsencode(source / "dead"), b"fuse.other", 0, data.encode())
    os.close(fuse_fd)
    handle = opendir(kernel)
    try:
        with_entries = names(kernel, handle, Opcode.READDIRPLUS)
        alone = names(kernel, handle)
    finally:
        fuse_mount.unmount(source / "dead")
    releasedir(kernel, handle)

    assert with_entries == {b"alive", *DOTS}
    assert alone == {b"alive", b"dead", *DOTS}


@both
def test_what_is_mounted_below_lists_as_empty_if_it_is_hidden(
    source: Path, connect: Connect, opcode: int
) -> None:
    (source / "disk").mkdir()
    syscalls.mount(b"disk", os.fsencode(source / "disk"), b"tmpfs", 0, b"")
    try:
        (source / "disk" / "inside").touch()
        kernel = connect(effective(session=SessionKind.KERNEL, submounts=Submounts.HIDE))
        disk = kernel.lookup(b"disk")
        handle = opendir(kernel, disk)
        found = names(kernel, handle, opcode, disk)
        releasedir(kernel, handle)
        kernel.forget_all()
        connect()  # ends the session before
    finally:
        syscalls.umount2(os.fsencode(source / "disk"), 0)

    assert found == DOTS


@both
def test_with_no_readdir_a_directory_is_empty(source: Path, connect: Connect, opcode: int) -> None:
    (source / "file").touch()
    kernel = connect(effective(session=SessionKind.KERNEL, no_readdir=True))
    handle = opendir(kernel)

    assert read(kernel, handle, opcode=opcode).body == b""
    assert read(kernel, handle + 1, opcode=opcode).error == errno.EBADF
    assert kernel.lookup(b"file")


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("policy", list(CachePolicy))
def test_the_kernel_may_keep_a_listing_if_the_policy_keeps_pages(
    connect: Connect, policy: CachePolicy
) -> None:
    options = effective(session=SessionKind.KERNEL, cache=policy)
    reply = connect(options).ask(Opcode.OPENDIR, BODIES["OPENDIR"])

    _, flags, backing = wire.OPEN_OUT.unpack(reply.body)

    keeps = policy is CachePolicy.ALWAYS
    assert flags == (abi.FOPEN_KEEP_CACHE | abi.FOPEN_CACHE_DIR if keeps else 0)
    assert backing == 0


@both
def test_directories_are_listed_without_an_open(
    source: Path, connect: Connect, opcode: int
) -> None:
    """Several callers may be at different places of the one stream."""
    (source / "dir").mkdir()
    for number in range(40):
        (source / "dir" / f"{number:050}").touch()
    (source / "file").touch()
    kernel = connect(effective(session=SessionKind.KERNEL, no_opendir=True))
    before = len(os.listdir("/proc/self/fd"))
    assert kernel.ask(Opcode.OPENDIR, BODIES["OPENDIR"]).error == errno.ENOSYS
    directory, file = kernel.lookup(b"dir"), kernel.lookup(b"file")
    plus = opcode == Opcode.READDIRPLUS

    found: list[set[bytes]] = [set(), set()]
    offsets = [0, 0]
    more = [True, True]
    while any(more):
        for caller, room in ((0, 1000), (1, 1700)):
            reply = read(kernel, 0, offsets[caller], room, opcode, directory)
            part = listed(reply.body, plus=plus)
            assert not part.keys() & found[caller]
            found[caller] |= part.keys()
            more[caller] = bool(part)
            offsets[caller] = end(reply, opcode) if part else offsets[caller]
    expected = {b"%050d" % number for number in range(40)} | DOTS
    assert found == [expected, expected]

    assert kernel.ask(Opcode.FSYNCDIR, wire.FSYNC_IN.pack(0, 0), directory).error == 0
    assert read(kernel, 0, nodeid=file, opcode=opcode).error == errno.EBADF
    assert read(kernel, 0, nodeid=file + 4711, opcode=opcode).error == errno.ESTALE
    kernel.forget_all()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_squashed_volume_lists_nothing_without_an_open(connect: Connect) -> None:
    kernel = connect(effective(session=SessionKind.KERNEL, squash=Squash.ROOT))

    for opcode in (Opcode.READDIR, Opcode.READDIRPLUS):
        assert read(kernel, 0, opcode=opcode).error == errno.EBADF
    assert kernel.ask(Opcode.FSYNCDIR, wire.FSYNC_IN.pack(0, 0)).error == errno.EBADF


def test_a_closed_stream_is_closed_once(kernel: Kernel) -> None:
    first = opendir(kernel)
    read(kernel, first)
    releasedir(kernel, first)
    second = opendir(kernel)

    assert second != first
    for opcode, body in (
        (Opcode.READDIR, READ.pack(first, 0, ROOM, 0, 0, 0)),
        (Opcode.READDIRPLUS, READ.pack(first, 0, ROOM, 0, 0, 0)),
        (Opcode.FSYNCDIR, wire.FSYNC_IN.pack(first, abi.FSYNC_FDATASYNC)),
        (Opcode.RELEASEDIR, wire.RELEASE_IN.pack(first, 0, 0, 0)),
        (Opcode.RELEASEDIR, wire.RELEASE_IN.pack(0, 0, 0, 0)),
    ):
        assert kernel.ask(opcode, body).error == errno.EBADF
    assert names(kernel, second) == DOTS
    assert kernel.ask(Opcode.FSYNCDIR, wire.FSYNC_IN.pack(second, abi.FSYNC_FDATASYNC)).error == 0
    releasedir(kernel, second)


def test_a_stream_begins_anew_in_the_slot_of_another(kernel: Kernel, source: Path) -> None:
    """An offset that the former stream gave leads to no entry of its."""
    (source / "dir").mkdir()
    for number in range(30):
        (source / f"{number:02}").touch()
    first = opendir(kernel)
    offset = end(read(kernel, first, room=300), Opcode.READDIR)
    releasedir(kernel, first)
    directory = kernel.lookup(b"dir")
    second = opendir(kernel, directory)

    part = listed(read(kernel, second, offset, nodeid=directory).body)
    assert part.keys() <= DOTS
    assert names(kernel, second, nodeid=directory) == DOTS
    releasedir(kernel, second)


def test_a_directory_that_was_removed_can_be_listed_while_it_is_open(
    kernel: Kernel, source: Path
) -> None:
    (source / "dir").mkdir()
    directory = kernel.lookup(b"dir")
    handle = opendir(kernel, directory)
    (source / "dir").rmdir()

    assert read(kernel, handle, nodeid=directory).error in {0, errno.ENOENT}

    releasedir(kernel, handle)


def test_only_directories_are_opened(kernel: Kernel, source: Path) -> None:
    (source / "file").touch()
    os.mkfifo(source / "fifo")

    for name in (b"file", b"fifo"):
        nodeid = kernel.lookup(name)
        assert kernel.ask(Opcode.OPENDIR, BODIES["OPENDIR"], nodeid).error == errno.EBADF
    assert stat.S_ISFIFO((source / "fifo").stat().st_mode)
