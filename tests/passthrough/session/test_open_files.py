"""Open files as bytes: the flags that reach the host, O_DIRECT, suid and sgid bits, fh 0."""

import errno
import fcntl
import logging
import mmap
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.linux import privileges
from passthrough.options.choices import Atime, CachePolicy, Sandbox, SessionKind
from passthrough.options.effective import Effective
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import EVERYTHING, Connect, Kernel, Reply, entry, text
from tests.support.tools import abi, wire
from tests.support.tools.callers import ROOT
from tests.support.tools.checks import descriptors_below
from tests.support.tools.implementations import CoreSession
from tests.support.tools.options import effective

BLOCK = 4096
UNCHECKED = 0o100000 | os.O_NOFOLLOW  # O_LARGEFILE, which the kernel adds; for new files alone
NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
LAST = (1 << 64) - 1
# Instructions of linux/filter.h: load the number of the call; if it is that of open_tree(2), answer
# EPERM; allow all other calls.
NO_OPEN_TREE = b"".join(
    struct.pack("=HBBI", *words)
    for words in (
        (0x20, 0, 0, 0),
        (0x15, 0, 1, 428),
        (0x06, 0, 0, 0x5_0001),
        (0x06, 0, 0, 0x7FFF_0000),
    )
)


def volume(**options: object) -> Effective:
    return effective(session=SessionKind.KERNEL, **options)


def create(kernel: Kernel, name: bytes, flags: int) -> tuple[int, int]:
    """Create *name* in the root; return its nodeid and its fh."""
    body = wire.CREATE_IN.pack(flags, 0o600, 0, 0) + text(name)
    reply = kernel.ask(Opcode.CREATE, body)
    assert reply.error == 0, os.strerror(reply.error)
    return entry(reply.body)["nodeid"], wire.OPEN_OUT.unpack_from(reply.body, 128)[0]


def write(
    kernel: Kernel, handle: int, offset: int, data: bytes, flags: int = 0, *, more: int = 0
) -> Reply:
    body = wire.WRITE_IN.pack(handle, offset, len(data), more, 0, flags) + data
    return kernel.ask(Opcode.WRITE, body)


def test_a_creation_with_o_path_makes_a_file_and_opens_no_fifo(
    kernel: Kernel, source: Path
) -> None:
    os.mkfifo(source / "fifo")
    body = wire.CREATE_IN.pack(os.O_RDWR | os.O_PATH, 0o600, 0, 0) + text(b"fifo")
    assert kernel.ask(Opcode.CREATE, body).error == errno.ESTALE  # it is there

    _, handle = create(kernel, b"new", os.O_RDWR | os.O_PATH)
    assert write(kernel, handle, 0, b"data").error == 0
    assert (source / "new").read_bytes() == b"data"
    kernel.release(handle)


def read(kernel: Kernel, handle: int, offset: int, size: int, flags: int = 0) -> Reply:
    return kernel.ask(Opcode.READ, wire.READ_IN.pack(handle, offset, size, 0, 0, flags))


def opened_below(source: Path) -> set[int]:
    """Return the descriptors of regular files below *source* that are no O_PATH descriptors."""
    return {
        fd
        for fd in descriptors_below(source)
        if stat.S_ISREG(os.fstat(fd).st_mode) and not flags_of(fd) & os.O_PATH
    }


def flags_of(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & ~UNCHECKED


# Flags of open(2) by what the options of a volume make of them.
REWRITTEN = {
    "as it is": (volume(), os.O_RDWR | os.O_TRUNC | os.O_SYNC, os.O_RDWR | os.O_SYNC),
    "for the caller's kernel": (volume(), NEW | os.O_NOCTTY, os.O_RDONLY),
    "append": (volume(), os.O_WRONLY | os.O_APPEND, os.O_WRONLY),
    "direct": (volume(), os.O_DIRECT, os.O_DIRECT),
    "no direct": (volume(allow_direct_io=False), os.O_RDWR | os.O_DIRECT, os.O_RDWR),
    "noatime": (volume(atime=Atime.NOATIME), os.O_RDONLY, os.O_RDONLY),
    "noatime without a sandbox": (
        volume(atime=Atime.NOATIME, sandbox=Sandbox.NONE),
        os.O_RDONLY,
        os.O_NOATIME,
    ),
    "writeback, reading": (volume(writeback=True), os.O_RDONLY, os.O_RDONLY),
    "writeback, writing": (volume(writeback=True), os.O_WRONLY, os.O_RDWR),
    "writeback, appending": (volume(writeback=True), os.O_WRONLY | os.O_APPEND, os.O_RDWR),
}


@pytest.mark.parametrize(("options", "given", "expected"), REWRITTEN.values(), ids=REWRITTEN)
def test_the_flags_that_reach_the_host(
    source: Path, connect: Connect, options: Effective, given: int, expected: int
) -> None:
    (source / "file").touch()
    kernel = connect(options)
    handles = [kernel.open(kernel.lookup(b"file"), given), create(kernel, b"new", given)[1]]

    assert [flags_of(fd) for fd in opened_below(source)] == [expected] * 2
    assert not any(os.get_inheritable(fd) for fd in descriptors_below(source))

    for handle in handles:
        kernel.release(handle)
    assert opened_below(source) == set()


def test_an_unnamed_file_may_get_a_name_unless_it_is_exclusive(
    kernel: Kernel, source: Path
) -> None:
    for flags, error in ((os.O_RDWR, 0), (os.O_RDWR | os.O_EXCL, errno.ENOENT)):
        body = wire.CREATE_IN.pack(flags, 0o600, 0, 0) + text(b"ignored")
        reply = kernel.ask(Opcode.TMPFILE, body)
        assert os.listdir(source) == []
        link = wire.LINK_IN.pack(entry(reply.body)["nodeid"]) + text(b"name")
        assert kernel.ask(Opcode.LINK, link).error == error
        kernel.release(wire.OPEN_OUT.unpack_from(reply.body, 128)[0])
        (source / "name").unlink(missing_ok=True)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_file_is_created_also_where_a_filter_refuses_open_tree(
    source: Path, *, refuses: bool
) -> None:
    """A seccomp(2) filter may know no open_tree(2); the inode is an O_PATH descriptor."""

    def created() -> tuple[bytes, list[int]]:
        if refuses:
            privileges.filter_calls(NO_OPEN_TREE)
        session = CoreSession(source, volume())
        nodeid, handle = create(kernel := Kernel(session, offered=0), b"new", os.O_RDWR)
        write(kernel, handle, 0, b"kept")
        kernel.release(handle)
        held = [flags_of(fd) & os.O_PATH for fd in descriptors_below(source / "new")]
        found = read(kernel, kernel.open(nodeid), 0, 10).body
        session.close()
        return found, held

    assert ROOT.run(created) == (b"kept", [os.O_PATH])


def test_a_file_is_opened_by_its_inode_not_by_its_name(kernel: Kernel, source: Path) -> None:
    (source / "file").write_bytes(b"kept")
    os.mkfifo(source / "fifo")
    nodeid = kernel.lookup(b"file")
    (source / "file").rename(source / "other")
    (source / "fifo").rename(source / "file")

    handle = kernel.open(nodeid, os.O_RDONLY)

    assert read(kernel, handle, 0, 10).body == b"kept"
    kernel.release(handle)


def test_a_file_without_a_name_is_opened_only_while_it_is_open(
    kernel: Kernel, source: Path
) -> None:
    """After ESTALE the kernel looks the name up again; /proc/PID/fd has no name to look up."""
    (source / "file").write_bytes(b"kept")
    nodeid = kernel.lookup(b"file")
    handles = [kernel.open(nodeid, os.O_RDONLY)]
    (source / "file").unlink()
    handles += [kernel.open(nodeid, flags) for flags in (os.O_RDONLY, os.O_RDWR | os.O_TRUNC)]
    for handle in handles:
        kernel.release(handle)

    reply = kernel.ask(Opcode.OPEN, wire.OPEN_IN.pack(os.O_RDWR, 0), nodeid)
    assert reply.error == errno.ESTALE
    assert opened_below(source) == set()


def test_a_caller_gets_estale_once_however_often_the_host_replaces_the_file(
    kernel: Kernel, source: Path
) -> None:
    """The kernel repeats a call once after ESTALE, fs/namei.c; a second one reaches the caller."""

    def replace(name: str) -> None:
        (source / "new").touch()
        (source / "new").rename(source / name)

    def opening(nodeid: int) -> int:
        return kernel.ask(Opcode.OPEN, wire.OPEN_IN.pack(os.O_RDONLY, 0), nodeid).error

    for name in ("file", "other"):
        replace(name)
    first, other = kernel.lookup(b"file"), kernel.lookup(b"other")
    replace("file")
    replace("other")
    refused = opening(first)
    second = kernel.lookup(b"file")
    replace("file")
    reply = kernel.ask(Opcode.OPEN, wire.OPEN_IN.pack(os.O_RDONLY, 0), second)

    assert (refused, reply.error) == (errno.ESTALE, 0)
    assert opening(other) == errno.ESTALE  # not looked up since the refusal
    kernel.release(wire.OPEN_OUT.unpack(reply.body)[0])


def test_an_fh_is_never_given_twice(kernel: Kernel, source: Path) -> None:
    (source / "file").touch()
    nodeid = kernel.lookup(b"file")
    first, second = kernel.open(nodeid), kernel.open(nodeid)
    kernel.release(first)
    third = kernel.open(nodeid)
    kernel.release(second)
    kernel.release(third)

    assert len({first, second, third}) == 3
    for handle in (first, second, third, 0, third + 1):
        body = wire.RELEASE_IN.pack(handle, 0, 0, 0)
        assert kernel.ask(Opcode.RELEASE, body, nodeid).error == errno.EBADF


def test_an_open_file_outlives_its_lookups(kernel: Kernel, source: Path) -> None:
    """The kernel may send RELEASE after FORGET."""
    (source / "file").write_bytes(b"kept")
    nodeid = kernel.lookup(b"file")
    handle = kernel.open(nodeid)
    kernel.granted.clear()
    kernel.tell(Opcode.FORGET, wire.FORGET_IN.pack(1), nodeid)

    assert read(kernel, handle, 0, 10).body == b"kept"
    kernel.release(handle)
    assert not kernel.knows(nodeid)
    assert descriptors_below(source / "file") == set()


# Reads and writes


def test_a_write_follows_its_own_flags(kernel: Kernel, source: Path) -> None:
    (source / "file").write_bytes(b"0123")
    handle = kernel.open(kernel.lookup(b"file"), os.O_WRONLY)
    write(kernel, handle, 0, b"end", os.O_APPEND)
    write(kernel, handle, 1, b"ab", os.O_SYNC)
    write(kernel, handle, 3, b"c", os.O_DSYNC)
    kernel.release(handle)

    assert (source / "file").read_bytes() == b"0abcend"


def test_with_writeback_the_kernel_appends(source: Path, connect: Connect) -> None:
    (source / "file").write_bytes(b"0123")
    kernel = connect(volume(writeback=True))
    handle = kernel.open(kernel.lookup(b"file"), os.O_WRONLY | os.O_APPEND)
    write(kernel, handle, 0, b"x", os.O_APPEND)

    assert read(kernel, handle, 0, 10).body == b"x123"
    kernel.release(handle)


@pytest.mark.parametrize("flags", [0, os.O_APPEND, os.O_SYNC, os.O_DSYNC, os.O_APPEND | os.O_SYNC])
def test_no_offset_means_the_descriptors_own(kernel: Kernel, source: Path, flags: int) -> None:
    """To pwritev2(2), an offset of -1 would."""
    (source / "file").write_bytes(b"0123")
    handle = kernel.open(kernel.lookup(b"file"))

    for offset in (LAST, 1 << 63):
        assert write(kernel, handle, offset, b"x", flags).error == errno.EINVAL
        assert read(kernel, handle, offset, 1, flags).error == errno.EINVAL

    assert (source / "file").read_bytes() == b"0123"
    kernel.release(handle)


def test_a_read_is_no_longer_than_init_allows(kernel: Kernel, source: Path) -> None:
    (source / "file").write_bytes(b"x" * (1 << 20))
    handle = kernel.open(kernel.lookup(b"file"))

    assert len(read(kernel, handle, 0, 1 << 20).body) == 1 << 20
    assert read(kernel, handle, 0, (1 << 20) + 1).error == errno.EINVAL
    kernel.release(handle)


@pytest.fixture
def blocks(source: Path) -> Path:
    """A file of two blocks and ten bytes."""
    path = source / "blocks"
    path.write_bytes(b"a" * BLOCK + b"b" * BLOCK + b"0123456789")
    return path


@pytest.mark.parametrize("opened", [0, os.O_DIRECT])
def test_direct_reads_and_writes_have_aligned_buffers(
    kernel: Kernel, blocks: Path, opened: int
) -> None:
    handle = kernel.open(kernel.lookup(b"blocks"), os.O_RDWR | opened)
    data = b"c" * BLOCK

    assert write(kernel, handle, BLOCK, data, os.O_DIRECT).error == 0
    assert read(kernel, handle, 0, 2 * BLOCK, os.O_DIRECT).body == b"a" * BLOCK + data
    assert read(kernel, handle, 2 * BLOCK, BLOCK, os.O_DIRECT).body == b"0123456789"
    assert read(kernel, handle, 3 * BLOCK, BLOCK, os.O_DIRECT).body == b""
    kernel.release(handle)
    assert opened_below(blocks.parent) == set()


def bare(call: Callable[[], int]) -> int:
    """Return the errno that the host's own file system gives, 0 for none."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


@pytest.mark.parametrize("opened", [0, os.O_DIRECT])
@pytest.mark.parametrize(("offset", "size"), [(1, BLOCK), (0, 7), (3, 5)])
def test_unaligned_direct_requests_fail_as_on_the_host(
    kernel: Kernel, blocks: Path, offset: int, size: int, opened: int
) -> None:
    fd = os.open(blocks, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 2 * BLOCK) as buffer, memoryview(buffer)[:size] as view:
        reading = bare(lambda: os.preadv(fd, [view], offset))
        writing = bare(lambda: os.pwritev(fd, [view], offset))
    os.close(fd)
    handle = kernel.open(kernel.lookup(b"blocks"), os.O_RDWR | opened)

    assert read(kernel, handle, offset, size, os.O_DIRECT).error == reading
    assert write(kernel, handle, offset, bytes(size), os.O_DIRECT).error == writing
    kernel.release(handle)


@pytest.mark.parametrize("opened", [0, os.O_DIRECT])
def test_the_rest_of_a_mapped_file_is_written_wherever_it_ends(
    kernel: Kernel, blocks: Path, opened: int
) -> None:
    handle = kernel.open(kernel.lookup(b"blocks"), os.O_RDWR | opened)

    for rest in (b"9876543210", b"abcdefghij"):
        assert write(kernel, handle, 2 * BLOCK, rest, os.O_DIRECT).error == 0
        assert read(kernel, handle, 2 * BLOCK, BLOCK, os.O_DIRECT).body == rest
    assert blocks.read_bytes()[2 * BLOCK :] == b"abcdefghij"
    kernel.release(handle)
    assert opened_below(blocks.parent) == set()


@pytest.mark.parametrize("first", [0, os.O_DIRECT])
def test_a_change_of_o_direct_opens_a_second_descriptor_once(
    kernel: Kernel, blocks: Path, first: int
) -> None:
    second = first ^ os.O_DIRECT
    handle = kernel.open(kernel.lookup(b"blocks"), os.O_RDWR | os.O_SYNC | first)
    read(kernel, handle, 0, BLOCK, first | os.O_APPEND)
    assert len(opened_below(blocks.parent)) == 1

    for _ in range(2):
        assert write(kernel, handle, 0, b"1" * BLOCK, second).error == 0
        assert read(kernel, handle, 0, BLOCK, first).body == b"1" * BLOCK
        both = opened_below(blocks.parent)
        assert sorted(flags_of(fd) for fd in both) == sorted(
            os.O_RDWR | os.O_SYNC | flags for flags in (first, second)
        )
        assert not any(os.get_inheritable(fd) for fd in both)

    kernel.release(handle)
    assert opened_below(blocks.parent) == set()


@pytest.mark.parametrize("more", [0, abi.WRITE_CACHE])
def test_bits_that_the_host_sets_at_any_time_are_kept_for_root(
    kernel: Kernel, source: Path, more: int
) -> None:
    program = source / "program"
    program.touch()
    handle = kernel.open(kernel.lookup(b"program"), os.O_RDWR)
    for mode in (0o755, 0o6755, 0o4755, 0o2745):
        program.chmod(mode)
        assert write(kernel, handle, 0, b"x", more=more).error == 0
        assert stat.S_IMODE(program.stat().st_mode) == mode

    program.chmod(0o6755)
    assert write(kernel, handle, 0, b"x", more=abi.WRITE_KILL_SUIDGID).error == 0
    assert stat.S_IMODE(program.stat().st_mode) == 0o755
    kernel.release(handle)


# Options


def test_a_sealed_file_keeps_its_size(source: Path, connect: Connect) -> None:
    (source / "file").write_bytes(b"0123456789")
    kernel = connect(volume(seal_size=True))
    nodeid = kernel.lookup(b"file")
    handle = kernel.open(nodeid, os.O_RDWR)
    for offset, flags in (
        (9, 0),
        (0, os.O_APPEND),
        (10, 0),
        (1 << 63, 0),
        (LAST, 0),
        (LAST - 1, 0),
    ):
        assert write(kernel, handle, offset, b"ab", flags).error == errno.EPERM
    truncation = os.O_WRONLY | os.O_TRUNC
    opening = wire.OPEN_IN.pack(truncation, 0)
    creation = wire.CREATE_IN.pack(truncation, 0o600, 0, 0) + text(b"new")
    assert kernel.ask(Opcode.OPEN, opening, nodeid).error == errno.EPERM
    assert kernel.ask(Opcode.CREATE, creation).error == errno.EPERM

    assert write(kernel, handle, 8, b"ab").error == 0
    assert write(kernel, create(kernel, b"empty", os.O_RDWR)[1], 0, b"").error == 0
    assert (source / "file").read_bytes() == b"01234567ab"
    assert sorted(os.listdir(source)) == ["empty", "file"]


@pytest.fixture
def unopened(connect: Connect) -> Kernel:
    """A kernel of a volume with `no_open`."""
    kernel = connect(volume(cache=CachePolicy.ALWAYS, no_open=True))
    opening = wire.OPEN_IN.pack(os.O_RDWR, 0)
    assert kernel.ask(Opcode.OPEN, opening).error == errno.ENOSYS
    return kernel


def without_open(kernel: Kernel, nodeid: int, data: bytes | None = None) -> Reply:
    """Write *data* to a file that was never opened, or read the file."""
    if data is None:
        return kernel.ask(Opcode.READ, wire.READ_IN.pack(0, 0, 10, 0, 0, 0), nodeid)
    body = wire.WRITE_IN.pack(0, 0, len(data), 0, 0, os.O_APPEND | os.O_DIRECT) + data
    return kernel.ask(Opcode.WRITE, body, nodeid)


def test_without_open_a_file_is_opened_once_until_it_is_forgotten(
    unopened: Kernel, source: Path
) -> None:
    (source / "file").write_bytes(b"0123")
    nodeid = unopened.lookup(b"file")

    assert without_open(unopened, nodeid).body == b"0123"
    assert without_open(unopened, nodeid, b"ab").error == 0  # the kernel has found the end
    assert unopened.ask(Opcode.FSYNC, wire.FSYNC_IN.pack(0, 0), nodeid).error == 0
    assert unopened.ask(Opcode.FLUSH, wire.FLUSH_IN.pack(0, 0), nodeid).error == errno.ENOSYS
    assert unopened.ask(Opcode.RELEASE, wire.RELEASE_IN.pack(0, 0, 0, 0)).error == errno.EBADF
    assert (source / "file").read_bytes() == b"ab23"
    assert [flags_of(fd) for fd in opened_below(source)] == [os.O_RDWR]

    unopened.lookup(b"file")
    unopened.tell(Opcode.FORGET, wire.FORGET_IN.pack(1), nodeid)
    assert without_open(unopened, nodeid).body == b"ab23"
    unopened.tell(Opcode.FORGET, wire.FORGET_IN.pack(1), nodeid)
    assert descriptors_below(source / "file") == set()
    assert without_open(unopened, nodeid).error == errno.ESTALE


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY, os.O_RDONLY])
def test_without_open_a_new_file_is_not_left_open(
    unopened: Kernel, source: Path, flags: int
) -> None:
    """The kernel closes no file with RELEASE, once it has had no answer to OPEN."""
    nodeid, handle = create(unopened, b"file", flags)

    assert handle == 0
    assert opened_below(source) == set()
    assert without_open(unopened, nodeid, b"ab").error == 0
    assert without_open(unopened, nodeid).body == b"ab"
    unopened.tell(Opcode.FORGET, wire.FORGET_IN.pack(1), nodeid)
    assert descriptors_below(source / "file") == set()


def test_without_open_a_read_only_volume_opens_files_only_to_be_read(
    source: Path, connect: Connect
) -> None:
    (source / "file").write_bytes(b"0123")
    kernel = connect(volume(cache=CachePolicy.ALWAYS, no_open=True, readonly=True))
    nodeid = kernel.lookup(b"file")

    assert without_open(kernel, nodeid, b"ab").error == errno.EROFS
    assert without_open(kernel, nodeid).body == b"0123"
    assert [flags_of(fd) for fd in opened_below(source)] == [os.O_RDONLY]
    assert without_open(kernel, nodeid, b"ab").error == errno.EROFS


def test_without_open_only_files_are_read(unopened: Kernel, source: Path) -> None:
    os.mkfifo(source / "fifo")
    (source / "directory").mkdir()

    for name in (b"fifo", b"directory"):
        assert without_open(unopened, unopened.lookup(name)).error == errno.EBADF


def test_without_open_a_running_program_is_read(unopened: Kernel, source: Path) -> None:
    program = source / "program"
    shutil.copy("/bin/sleep", program)
    nodeid = unopened.lookup(b"program")
    with subprocess.Popen([program, "60"]) as running:
        assert without_open(unopened, nodeid).body == program.read_bytes()[:10]
        assert without_open(unopened, nodeid, b"x").error == errno.EBADF
        running.kill()


@pytest.mark.logs("some files are read and written by the worker")
def test_a_file_that_cannot_pass_through_is_served_with_one_line_in_the_log(
    source: Path, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A socket in place of /dev/fuse takes no ioctl(2)."""
    (source / "file").write_bytes(b"kept")
    kernel = connect(offered=EVERYTHING)
    nodeid = kernel.lookup(b"file")
    with caplog.at_level(logging.WARNING):
        replies = [
            kernel.ask(Opcode.OPEN, wire.OPEN_IN.pack(os.O_RDWR, 0), nodeid) for _ in range(2)
        ]
        _, made = create(kernel, b"new", os.O_RDWR)

    handles = []
    for reply in replies:
        handle, flags, backing = wire.OPEN_OUT.unpack(reply.body)
        assert (flags & abi.FOPEN_PASSTHROUGH, backing) == (0, 0)
        handles.append(handle)
    assert read(kernel, handles[0], 0, 10).body == b"kept"
    assert len(caplog.records) == 1
    for handle in (*handles, made):
        kernel.release(handle)
    assert opened_below(source) == set()
