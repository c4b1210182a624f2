"""FALLOCATE, LSEEK, COPY_FILE_RANGE and IOCTL, as bytes of requests and replies."""

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

import pytest

from passthrough.options.choices import SessionKind
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import Connect, Kernel
from tests.support.tools import abi, wire
from tests.support.tools.abi import Notification
from tests.support.tools.bodies import BODIES
from tests.support.tools.host_calls import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_UNSHARE_RANGE,
    FALLOC_FL_ZERO_RANGE,
    FS_IOC_FSGETXATTR,
    FS_IOC_FSSETXATTR,
    FS_IOC_GETFLAGS,
    FS_IOC_SETFLAGS,
    fallocate,
)
from tests.support.tools.options import effective

BLOCK = 4096
LAST = (1 << 63) - 1
SEALED = effective(session=SessionKind.KERNEL, seal_size=True)
NO_DUMP = 0x40  # FS_NODUMP_FL, FS_XFLAG_NODUMP is 0x80
HEAD = wire.IOCTL_OUT.pack(0, 0, 0, 0)


@pytest.fixture
def blocks(source: Path) -> Path:
    """A file of four blocks: a, b, c, d."""
    path = source / "file"
    path.write_bytes(b"".join(letter * BLOCK for letter in (b"a", b"b", b"c", b"d")))
    path.chmod(0o666)
    (source / "other").write_bytes(b"0123456789")
    return path


def letters(path: Path) -> str:
    """Return the first letter of each block of a file."""
    data = path.read_bytes()
    return "".join(chr(data[at]) if data[at] else "." for at in range(0, len(data), BLOCK))


def opened(kernel: Kernel, name: bytes, flags: int = os.O_RDWR) -> int:
    return kernel.open(kernel.lookup(name), flags)


def allocate(kernel: Kernel, handle: int, mode: int, offset: int, length: int) -> int:
    """Return the errno of FALLOCATE."""
    body = wire.FALLOCATE_IN.pack(handle, offset, length, mode)
    return kernel.ask(Opcode.FALLOCATE, body).error


def seek(kernel: Kernel, handle: int, offset: int, whence: int) -> int:
    """Return the offset that LSEEK finds, or its errno below 0."""
    reply = kernel.ask(Opcode.LSEEK, wire.LSEEK_IN.pack(handle, offset, whence))
    return -reply.error if reply.error else int(wire.LSEEK_OUT.unpack(reply.body)[0])


def copy(  # noqa: PLR0917 - what the request carries
    kernel: Kernel, handle: int, offset: int, to: int, to_offset: int, length: int, flags: int = 0
) -> int:
    """Return how many bytes are copied, or the errno below 0; both opcodes do the same."""
    fields = (handle, offset, abi.ROOT_ID, to, to_offset, length, flags)
    body = wire.COPY_FILE_RANGE_IN.pack(*fields)
    old = kernel.ask(Opcode.COPY_FILE_RANGE, body)
    new = kernel.ask(Opcode.COPY_FILE_RANGE_64, body)
    assert old.error == new.error
    if new.error:
        return -new.error
    assert wire.COPY_FILE_RANGE_OUT.unpack(new.body) == wire.WRITE_OUT.unpack(old.body)
    return int(wire.COPY_FILE_RANGE_OUT.unpack(new.body)[0])


def ioctl(
    kernel: Kernel, handle: int, command: int, data: bytes = b"", flags: int = 0
) -> tuple[int, bytes]:
    """Return the errno of IOCTL, and what it has read."""
    body = wire.IOCTL_IN.pack(handle, flags, command, 0, len(data), 28) + data
    reply = kernel.ask(Opcode.IOCTL, body)
    assert reply.error or reply.body.startswith(HEAD)
    return reply.error, reply.body[len(HEAD) :]


# The content of a file abcd after each way of allocating blocks 1 and 2, or 3 and 4.
ALLOCATED = {
    "inside": (0, 1, "abcd"),
    "beyond the end": (0, 3, "abcd."),
    "beyond the end, which stays": (FALLOC_FL_KEEP_SIZE, 3, "abcd"),
    "a hole": (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1, "a..d"),
    "zeros": (FALLOC_FL_ZERO_RANGE, 1, "a..d"),
    "zeros beyond the end": (FALLOC_FL_ZERO_RANGE, 3, "abc.."),
    "zeros beyond the end, which stays": (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 3, "abc."),
    "collapsed": (FALLOC_FL_COLLAPSE_RANGE, 1, "ad"),
    "inserted": (FALLOC_FL_INSERT_RANGE, 1, "a..bcd"),
}
GROWING = {"beyond the end", "zeros beyond the end", "collapsed", "inserted"}


@pytest.mark.usefixtures("on_ext4")
@pytest.mark.parametrize(("mode", "block", "after"), ALLOCATED.values(), ids=ALLOCATED)
def test_fallocate_does_as_the_host(
    kernel: Kernel, blocks: Path, mode: int, block: int, after: str
) -> None:
    before = blocks.stat().st_blocks
    handle = opened(kernel, b"file")

    assert allocate(kernel, handle, mode, block * BLOCK, 2 * BLOCK) == 0

    assert letters(blocks) == after
    if mode & FALLOC_FL_PUNCH_HOLE:
        assert blocks.stat().st_blocks < before
    kernel.release(handle)


def test_what_the_host_cannot_do_it_says(kernel: Kernel, blocks: Path) -> None:
    handle = opened(kernel, b"file")
    without_keep_size = FALLOC_FL_PUNCH_HOLE
    assert allocate(kernel, handle, without_keep_size, 0, BLOCK) == errno.EOPNOTSUPP
    expected = 0
    with blocks.open("r+b") as file:
        try:
            fallocate(file.fileno(), FALLOC_FL_UNSHARE_RANGE, 0, BLOCK)
        except OSError as error:
            expected = error.errno or 0
    assert allocate(kernel, handle, FALLOC_FL_UNSHARE_RANGE, 0, BLOCK) == expected
    for offset, length, number in (
        (0, 0, errno.EINVAL),
        (LAST + 1, BLOCK, errno.EINVAL),
        (0, LAST + 1, errno.EINVAL),
        (BLOCK, LAST, errno.EFBIG),
        (LAST, 1, errno.EFBIG),
    ):
        assert allocate(kernel, handle, 0, offset, length) == number, (offset, length)
    kernel.release(handle)
    assert letters(blocks) == "abcd"


@pytest.mark.usefixtures("on_ext4")
@pytest.mark.parametrize("name", ALLOCATED)
def test_seal_size_refuses_what_would_change_the_size(
    connect: Connect, blocks: Path, name: str
) -> None:
    mode, block, after = ALLOCATED[name]
    kernel = connect(SEALED)
    handle = opened(kernel, b"file")

    error = allocate(kernel, handle, mode, block * BLOCK, 2 * BLOCK)

    assert error == (errno.EPERM if name in GROWING else 0)
    assert letters(blocks) == ("abcd" if name in GROWING else after)


@pytest.mark.usefixtures("blocks")
def test_a_read_only_volume_changes_nothing(connect: Connect) -> None:
    kernel = connect(effective(session=SessionKind.KERNEL, readonly=True))
    handle = opened(kernel, b"file", os.O_RDONLY)

    assert allocate(kernel, handle, 0, 0, BLOCK) == errno.EROFS
    assert copy(kernel, handle, 0, handle, BLOCK, BLOCK) == -errno.EROFS
    error, flags = ioctl(kernel, handle, FS_IOC_GETFLAGS)
    assert error == 0
    assert ioctl(kernel, handle, FS_IOC_SETFLAGS, flags)[0] == errno.EROFS


def test_holes_are_found(kernel: Kernel, source: Path) -> None:
    with (source / "file").open("wb") as file:
        file.seek(16 * BLOCK)
        file.write(b"x" * BLOCK)
        file.truncate(32 * BLOCK)
    handle = opened(kernel, b"file", os.O_RDONLY)

    # Without kernel passthrough, the core takes the file for all data.
    for offset, whence, found, without in (
        (0, os.SEEK_DATA, 16 * BLOCK, 0),
        (16 * BLOCK, os.SEEK_HOLE, 17 * BLOCK, 32 * BLOCK),
        (3, os.SEEK_HOLE, 3, 32 * BLOCK),
        (17 * BLOCK, os.SEEK_DATA, -errno.ENXIO, 17 * BLOCK),
        (32 * BLOCK, os.SEEK_DATA, -errno.ENXIO, -errno.ENXIO),
    ):
        assert seek(kernel, handle, offset, whence) in {found, without}, (offset, whence)
    for offset, whence, found in (
        (LAST + 1, os.SEEK_DATA, -errno.ENXIO),
        (0, os.SEEK_SET, -errno.EINVAL),
        (LAST + 1, os.SEEK_END, -errno.EINVAL),
    ):
        assert seek(kernel, handle, offset, whence) == found, (offset, whence)
    kernel.release(handle)


def test_ranges_are_copied_within_the_host(kernel: Kernel, blocks: Path) -> None:
    handle = opened(kernel, b"file", os.O_RDONLY)
    target = opened(kernel, b"other", os.O_WRONLY)

    assert copy(kernel, handle, BLOCK - 1, target, 4, 3) == 3
    assert copy(kernel, handle, 4 * BLOCK - 2, target, 10, 100) == 2
    assert copy(kernel, handle, 4 * BLOCK, target, 0, 100) == 0
    assert copy(kernel, handle, 0, target, 0, 0) == 0
    assert copy(kernel, target, 0, handle, 0, 1) == -errno.EBADF
    for offset, to_offset, flags in ((LAST + 1, 0, 0), (0, LAST + 1, 0), (0, 0, 1)):
        assert copy(kernel, handle, offset, target, to_offset, 1, flags) == -errno.EINVAL
    kernel.release(handle)
    kernel.release(target)

    assert (blocks.parent / "other").read_bytes() == b"0123abb789dd"


def test_seal_size_refuses_a_copy_beyond_the_end(connect: Connect, blocks: Path) -> None:
    kernel = connect(SEALED)
    handle, other = opened(kernel, b"file"), opened(kernel, b"other")

    assert copy(kernel, handle, 0, other, 9, 2) == -errno.EPERM
    assert copy(kernel, handle, 0, other, 9, 1) == 1
    longer_than_the_source = copy(kernel, handle, 4 * BLOCK - 1, other, 9, 100)
    assert longer_than_the_source == 1
    assert copy(kernel, handle, 5 * BLOCK, other, 20, 1) == 0
    assert (blocks.parent / "other").read_bytes() == b"012345678d"
    assert letters(blocks) == "abcd"


def test_a_file_that_was_never_opened_is_copied_and_allocated(kernel: Kernel, blocks: Path) -> None:
    """The fh 0 means the file of the nodeid, for each of two files."""
    nodeid, other = kernel.lookup(b"file"), kernel.lookup(b"other")

    body = wire.COPY_FILE_RANGE_IN.pack(0, BLOCK, other, 0, 10, 3, 0)
    reply = kernel.ask(Opcode.COPY_FILE_RANGE_64, body, nodeid)
    assert wire.COPY_FILE_RANGE_OUT.unpack(reply.body) == (3,)
    body = wire.FALLOCATE_IN.pack(0, 4 * BLOCK, 1, 0)
    assert kernel.ask(Opcode.FALLOCATE, body, nodeid).error == 0
    assert kernel.ask(Opcode.LSEEK, wire.LSEEK_IN.pack(0, 0, os.SEEK_DATA), nodeid).error == 0

    assert (blocks.parent / "other").read_bytes() == b"0123456789bbb"
    assert blocks.stat().st_size == 4 * BLOCK + 1


# FS_IOC_*


def test_flags_of_files_and_directories_pass(kernel: Kernel, source: Path) -> None:
    (source / "file").touch()
    handle = opened(kernel, b"file", os.O_RDONLY)
    directory = wire.OPEN_OUT.unpack(kernel.ask(Opcode.OPENDIR, BODIES["OPENDIR"]).body)[0]
    for number, flags in ((handle, 0), (directory, abi.IOCTL_DIR)):
        error, before = ioctl(kernel, number, FS_IOC_GETFLAGS, flags=flags)
        assert (error, len(before)) == (0, 4)
        asked = struct.pack("=I", struct.unpack("=I", before)[0] | NO_DUMP)
        assert ioctl(kernel, number, FS_IOC_SETFLAGS, asked, flags) == (0, b"")
    kernel.release(handle)
    kernel.ask(Opcode.RELEASEDIR, wire.RELEASE_IN.pack(directory, 0, 0, 0))

    for path in (source, source / "file"):
        fd = os.open(path, os.O_RDONLY)
        (found,) = struct.unpack("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))
        os.close(fd)
        assert found & NO_DUMP


def test_extended_flags_pass(kernel: Kernel, blocks: Path) -> None:
    """Struct fsxattr: flags, extent size, extents, project id."""
    handle = opened(kernel, b"file", os.O_RDONLY)
    _, before = ioctl(kernel, handle, FS_IOC_FSGETXATTR)
    with blocks.open("rb") as file:
        assert before == fcntl.ioctl(file.fileno(), FS_IOC_FSGETXATTR, bytes(28))
    asked = struct.pack("=I", struct.unpack_from("=I", before)[0] | NO_DUMP << 1) + before[4:]

    assert ioctl(kernel, handle, FS_IOC_FSSETXATTR, asked) == (0, b"")

    assert ioctl(kernel, handle, FS_IOC_FSGETXATTR) == (0, asked)
    kernel.release(handle)


@pytest.mark.usefixtures("blocks")
def test_the_kernel_hears_of_a_change_of_flags(kernel: Kernel) -> None:
    """The change time is another one."""
    nodeid = kernel.lookup(b"file")
    handle = kernel.open(nodeid)
    _, flags = ioctl(kernel, handle, FS_IOC_GETFLAGS)
    assert kernel.notifications == []

    body = wire.IOCTL_IN.pack(handle, 0, FS_IOC_SETFLAGS, 0, 4, 0) + flags
    reply = kernel.ask(Opcode.IOCTL, body, nodeid)
    assert (reply.error, reply.body) == (0, HEAD)

    forgotten = (Notification.INVAL_INODE, wire.NOTIFY_INVAL_INODE_OUT.pack(nodeid, -1, 0))
    assert kernel.notifications == [forgotten]
    kernel.release(handle)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("command", [0x5401, 0x1277, 0x4004_9409, 0xC020_660B, 0])
def test_no_other_ioctl_passes(kernel: Kernel, command: int) -> None:
    """TCGETS, BLKSSZGET, FICLONE, FS_IOC_FIEMAP, none."""
    handle = opened(kernel, b"file")
    assert ioctl(kernel, handle, command, bytes(64))[0] == errno.ENOTTY
    kernel.release(handle)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("size", [0, 3, 5, 28])
def test_an_ioctl_takes_just_what_it_takes(kernel: Kernel, size: int) -> None:
    handle = opened(kernel, b"file")
    assert ioctl(kernel, handle, FS_IOC_SETFLAGS, bytes(size))[0] == errno.EINVAL
    body = wire.IOCTL_IN.pack(handle, 0, FS_IOC_SETFLAGS, 0, 4, 0) + bytes(size)
    assert kernel.ask(Opcode.IOCTL, body).error == errno.EIO  # it does not have the bytes
    kernel.release(handle)


@pytest.mark.parametrize("flags", [0, abi.IOCTL_DIR])
def test_an_ioctl_needs_an_open_file_or_directory(kernel: Kernel, flags: int) -> None:
    assert ioctl(kernel, 0, FS_IOC_GETFLAGS, flags=flags)[0] == errno.EBADF
    assert ioctl(kernel, 7, 0x5401, flags=flags)[0] == errno.EBADF


@pytest.mark.usefixtures("on_ext4")
@pytest.mark.parametrize(("left_to_this_side", "left"), [(False, 0o6777), (True, 0o777)])
def test_suid_and_sgid_bits_stay_unless_the_kernel_leaves_them_to_this_side(
    connect: Connect, blocks: Path, left_to_this_side: bool, left: int
) -> None:
    config = effective(session=SessionKind.KERNEL, killpriv_v2=left_to_this_side)
    kernel = connect(config)
    handle, other = opened(kernel, b"file"), opened(kernel, b"other")

    blocks.chmod(0o6777)
    assert allocate(kernel, handle, FALLOC_FL_ZERO_RANGE, 0, BLOCK) == 0
    assert stat.S_IMODE(blocks.stat().st_mode) == left

    blocks.chmod(0o6777)
    assert copy(kernel, other, 0, handle, 0, 5) == 5
    assert stat.S_IMODE(blocks.stat().st_mode) == left
