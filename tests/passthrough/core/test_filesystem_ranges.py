"""The operations on parts of open files, on their flags, and on files without a name."""

import errno
import fcntl
import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.inodes import ROOT
from passthrough.linux import filecalls
from passthrough.linux.filecalls import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_UNSHARE_RANGE,
    FALLOC_FL_ZERO_RANGE,
)
from passthrough.options.choices import InodeFileHandles
from passthrough.options.effective import Effective
from tests.support.tools.direct import CALLER, fails, number_of
from tests.support.tools.options import effective

BLOCK = 4096


@pytest.fixture
def blocks(source: Path) -> Path:
    """A file of four blocks: a, b, c, d."""
    path = source / "file"
    path.write_bytes(b"".join(letter * BLOCK for letter in (b"a", b"b", b"c", b"d")))
    path.chmod(0o666)
    return path


def letters(path: Path) -> str:
    """The first letter of each block of a file."""
    data = path.read_bytes()
    return "".join(chr(data[at]) if data[at] else "." for at in range(0, len(data), BLOCK))


@contextmanager
def serving(source: Path, config: Effective) -> Iterator[PassthroughFs]:
    fs = PassthroughFs(config, os.open(source, os.O_PATH | os.O_DIRECTORY))
    yield fs
    fs.close()


@contextmanager
def opened(fs: PassthroughFs, flags: int = os.O_RDWR, name: bytes = b"file") -> Iterator[int]:
    handle = fs.open(number_of(fs, name), flags)
    yield handle
    fs.release(handle)


# What each way of allocating makes of blocks 1 and 2 of abcd, or of 3 and 4.
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


@pytest.mark.parametrize(("mode", "block", "after"), ALLOCATED.values(), ids=ALLOCATED)
def test_fallocate_does_as_the_host(
    fs: PassthroughFs, blocks: Path, mode: int, block: int, after: str
) -> None:
    before = blocks.stat().st_blocks
    with opened(fs) as handle:
        fs.fallocate(handle, mode, block * BLOCK, 2 * BLOCK)

    assert letters(blocks) == after
    if mode & FALLOC_FL_PUNCH_HOLE:
        assert blocks.stat().st_blocks < before


def test_what_the_host_cannot_do_it_says(fs: PassthroughFs, blocks: Path) -> None:
    with opened(fs) as handle:
        mode = FALLOC_FL_PUNCH_HOLE  # without KEEP_SIZE
        fails(errno.EOPNOTSUPP, lambda: fs.fallocate(handle, mode, 0, BLOCK))
        try:
            filecalls.fallocate(fs.files[handle].fd, FALLOC_FL_UNSHARE_RANGE, 0, BLOCK)
        except OSError as error:
            number = error.errno or 0
            fails(number, lambda: fs.fallocate(handle, FALLOC_FL_UNSHARE_RANGE, 0, BLOCK))
        fails(errno.EINVAL, lambda: fs.fallocate(handle, 0, 0, 0))
        fails(errno.EINVAL, lambda: fs.fallocate(handle, 0, 1 << 63, BLOCK))
        fails(errno.EFBIG, lambda: fs.fallocate(handle, 0, BLOCK, (1 << 63) - 1))
    with opened(fs, os.O_RDONLY) as handle:
        fails(errno.EBADF, lambda: fs.fallocate(handle, 0, 0, BLOCK))
    assert letters(blocks) == "abcd"


@pytest.mark.parametrize("name", ALLOCATED)
def test_seal_size_refuses_what_would_change_the_size(
    source: Path, blocks: Path, name: str
) -> None:
    mode, block, after = ALLOCATED[name]
    with serving(source, effective(seal_size=True)) as fs, opened(fs) as handle:
        if name in GROWING:
            fails(errno.EPERM, lambda: fs.fallocate(handle, mode, block * BLOCK, 2 * BLOCK))
            after = "abcd"
        else:
            fs.fallocate(handle, mode, block * BLOCK, 2 * BLOCK)

    assert letters(blocks) == after


@pytest.mark.usefixtures("blocks")
def test_a_read_only_volume_changes_nothing(source: Path) -> None:
    with serving(source, effective(readonly=True)) as fs, opened(fs, os.O_RDONLY) as handle:
        fails(errno.EROFS, lambda: fs.fallocate(handle, 0, 0, BLOCK))
        fails(errno.EROFS, lambda: fs.copy_file_range(handle, 0, handle, BLOCK, BLOCK))
        fails(errno.EROFS, lambda: fs.tmpfile(ROOT, 0o600, os.O_RDWR, CALLER))
        flags = fs.ioctl(handle, filecalls.FS_IOC_GETFLAGS, b"")
        fails(errno.EROFS, lambda: fs.ioctl(handle, filecalls.FS_IOC_SETFLAGS, flags))


@pytest.mark.parametrize("clear", [False, True])
def test_suid_and_sgid_go_if_the_kernel_asks(fs: PassthroughFs, blocks: Path, clear: bool) -> None:
    (blocks.parent / "other").write_bytes(b"12345")
    for change in (
        lambda handle, _: fs.fallocate(
            handle, FALLOC_FL_ZERO_RANGE, 0, BLOCK, clear_privileges=clear
        ),
        lambda handle, other: fs.copy_file_range(other, 0, handle, 0, 5, clear_privileges=clear),
    ):
        blocks.chmod(0o6777)
        with opened(fs) as handle, opened(fs, name=b"other") as other:
            change(handle, other)
        assert stat.S_IMODE(blocks.stat().st_mode) == (0o777 if clear else 0o6777)


def test_holes_are_found(fs: PassthroughFs, source: Path) -> None:
    with open(source / "file", "wb") as file:
        file.seek(16 * BLOCK)
        file.write(b"x" * BLOCK)
        file.truncate(32 * BLOCK)

    with opened(fs, os.O_RDONLY) as handle:
        assert fs.lseek(handle, 0, os.SEEK_DATA) == 16 * BLOCK
        assert fs.lseek(handle, 16 * BLOCK, os.SEEK_HOLE) == 17 * BLOCK
        assert fs.lseek(handle, 3, os.SEEK_HOLE) == 3
        fails(errno.ENXIO, lambda: fs.lseek(handle, 17 * BLOCK, os.SEEK_DATA))
        fails(errno.ENXIO, lambda: fs.lseek(handle, 1 << 63, os.SEEK_DATA))
        fails(errno.EINVAL, lambda: fs.lseek(handle, 0, os.SEEK_SET))


def test_ranges_are_copied_within_the_host(fs: PassthroughFs, blocks: Path) -> None:
    (blocks.parent / "other").write_bytes(b"0123456789")
    with opened(fs, os.O_RDONLY) as source, opened(fs, os.O_WRONLY, b"other") as target:
        assert fs.copy_file_range(source, BLOCK - 1, target, 4, 3) == 3
        assert fs.copy_file_range(source, 4 * BLOCK - 2, target, 10, 100) == 2
        assert fs.copy_file_range(source, 4 * BLOCK, target, 0, 100) == 0
        fails(errno.EBADF, lambda: fs.copy_file_range(target, 0, source, 0, 1))
        fails(errno.EINVAL, lambda: fs.copy_file_range(source, 1 << 63, target, 0, 1))

    assert (blocks.parent / "other").read_bytes() == b"0123abb789dd"


def test_seal_size_refuses_a_copy_beyond_the_end(source: Path, blocks: Path) -> None:
    (source / "other").write_bytes(b"0123456789")
    with (
        serving(source, effective(seal_size=True)) as fs,
        opened(fs) as file,
        opened(fs, name=b"other") as other,
    ):
        fails(errno.EPERM, lambda: fs.copy_file_range(file, 0, other, 9, 2))
        assert fs.copy_file_range(file, 0, other, 9, 1) == 1
        # Longer than what there is to copy.
        assert fs.copy_file_range(file, 4 * BLOCK - 1, other, 9, 100) == 1
    assert (source / "other").read_bytes() == b"012345678d"
    assert letters(blocks) == "abcd"


def test_a_file_without_a_name_is_the_callers_and_gets_one_later(
    fs: PassthroughFs, source: Path
) -> None:
    entry, handle = fs.tmpfile(ROOT, 0o640, os.O_RDWR | os.O_TMPFILE, CALLER)
    assert entry.stat.st_nlink == 0
    assert list(source.iterdir()) == []
    fs.write(handle, 0, b"content")
    linked = fs.link(entry.inode_number, ROOT, b"named")

    assert linked.inode_number == entry.inode_number
    status = (source / "named").stat()
    assert (status.st_uid, status.st_gid) == (CALLER.uid, CALLER.gid)
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert (source / "named").read_bytes() == b"content"
    fs.release(handle)


def test_a_file_without_a_name_goes_with_its_last_user(fs: PassthroughFs, source: Path) -> None:
    entry, handle = fs.tmpfile(ROOT, 0o600, os.O_WRONLY, CALLER)
    fs.release(handle)
    fails(errno.ESTALE, lambda: fs.open(entry.inode_number, os.O_RDONLY))
    assert list(source.iterdir()) == []


def test_a_file_without_a_name_that_is_held_by_handle_keeps_its_number(source: Path) -> None:
    """The host would give it to the next file, before the kernel has forgotten this one."""
    config = effective(inode_file_handles=InodeFileHandles.MANDATORY)
    with serving(source, config) as fs:
        entry, handle = fs.tmpfile(ROOT, 0o600, os.O_RDWR, CALLER)
        fs.release(handle)
        others = [fs.create(ROOT, b"%d" % at, 0o600, os.O_RDWR, CALLER)[0] for at in range(20)]

        assert entry.stat.st_ino not in {other.stat.st_ino for other in others}
        assert fs.getattr(entry.inode_number).stat.st_nlink == 0
        with fs.inodes[entry.inode_number].opened() as fd:
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH, "it could not be executed"


def test_a_file_that_was_to_have_no_name_gets_none(fs: PassthroughFs) -> None:
    entry, handle = fs.tmpfile(ROOT, 0o600, os.O_RDWR | os.O_EXCL, CALLER)

    fails(errno.ENOENT, lambda: fs.link(entry.inode_number, ROOT, b"named"))
    fs.release(handle)


def test_the_birth_time_stands_beside_the_attributes(fs: PassthroughFs, blocks: Path) -> None:
    number = number_of(fs, b"file")
    found, birth = fs.statx(number)
    shown = subprocess.run(["stat", "-c", "%.9W", blocks], check=True, capture_output=True)

    alone = fs.getattr(number)
    assert (found.number, found.stat, found.timeout) == (alone.number, alone.stat, alone.timeout)
    assert birth is not None
    assert f"{birth[0]}.{birth[1]:09}" == shown.stdout.decode().strip()


def test_where_nobody_knows_the_birth_time_there_is_none() -> None:
    config = effective(inode_file_handles=InodeFileHandles.NEVER)
    with serving(Path("/proc/self"), config) as fs:
        found, birth = fs.statx(ROOT)

    assert birth is None
    assert stat.S_ISDIR(found.stat.st_mode)


def test_a_file_system_is_brought_to_stable_storage(fs: PassthroughFs, blocks: Path) -> None:
    fs.syncfs(ROOT)
    fails(errno.EBADF, lambda: fs.syncfs(number_of(fs, os.fsencode(blocks.name))))


NO_DUMP = 0x40  # FS_NODUMP_FL


@pytest.mark.usefixtures("blocks")
def test_flags_of_files_and_directories_pass(fs: PassthroughFs, source: Path) -> None:
    directory = fs.opendir(ROOT)
    with opened(fs, os.O_RDONLY) as handle:
        for number, is_directory in ((handle, False), (directory, True)):
            before = fs.ioctl(number, filecalls.FS_IOC_GETFLAGS, b"", directory=is_directory)
            (flags,) = struct.unpack("=I", before)
            asked = struct.pack("=I", flags | NO_DUMP)
            fs.ioctl(number, filecalls.FS_IOC_SETFLAGS, asked, directory=is_directory)
    fs.releasedir(directory)

    for path in (source, source / "file"):
        fd = os.open(path, os.O_RDONLY)
        (flags,) = struct.unpack("=I", fcntl.ioctl(fd, filecalls.FS_IOC_GETFLAGS, bytes(4)))
        os.close(fd)
        assert flags & NO_DUMP


@pytest.mark.usefixtures("blocks")
def test_extended_flags_pass(fs: PassthroughFs) -> None:
    """Struct fsxattr: flags, extent size, extents, project id."""
    with opened(fs, os.O_RDONLY) as handle:
        before = fs.ioctl(handle, filecalls.FS_IOC_FSGETXATTR, b"")
        host = fcntl.ioctl(fs.files[handle].fd, filecalls.FS_IOC_FSGETXATTR, bytes(28))
        assert before == host
        asked = struct.pack("=I", struct.unpack_from("=I", before)[0] | 0x80) + before[4:]
        fs.ioctl(handle, filecalls.FS_IOC_FSSETXATTR, asked)
        after = fs.ioctl(handle, filecalls.FS_IOC_FSGETXATTR, b"")

    assert after == asked


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("command", [0x5401, 0x1277, 0x4004_9409, 0xC020_660B, 0])
def test_no_other_ioctl_passes(fs: PassthroughFs, command: int) -> None:
    """TCGETS, BLKSSZGET, FICLONE, FS_IOC_FIEMAP, none."""
    with opened(fs) as handle:
        fails(errno.ENOTTY, lambda: fs.ioctl(handle, command, bytes(64)))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("size", [0, 3, 5, 28])
def test_an_ioctl_takes_just_what_it_takes(fs: PassthroughFs, size: int) -> None:
    with opened(fs) as handle:
        fails(errno.EINVAL, lambda: fs.ioctl(handle, filecalls.FS_IOC_SETFLAGS, bytes(size)))


def test_an_open_file_can_begin_and_cease_to_append(fs: PassthroughFs, source: Path) -> None:
    (source / "file").write_bytes(b"0123")
    with opened(fs, os.O_WRONLY) as handle:
        fs.write(handle, 0, b"+", os.O_WRONLY | os.O_APPEND)
        fs.write(handle, 0, b"a", os.O_WRONLY)
    with opened(fs, os.O_WRONLY | os.O_APPEND) as handle:
        fs.write(handle, 1, b"b", os.O_WRONLY)
        fs.write(handle, 0, b"-", os.O_WRONLY | os.O_APPEND)
        # Pages of a mapped file, which the kernel writes back by any descriptor.
        fs.write(handle, 2, b"c", 0)

    assert (source / "file").read_bytes() == b"abc3+-"


def test_an_open_file_can_begin_and_cease_to_be_direct(fs: PassthroughFs, blocks: Path) -> None:
    with opened(fs) as handle:
        for _ in range(2):
            fails(errno.EINVAL, lambda: fs.read(handle, 1, 7, os.O_RDWR | os.O_DIRECT))
            assert fs.read(handle, 1, 7, os.O_RDWR) == b"aaaaaaa"
        assert fs.write(handle, 0, b"z" * BLOCK, os.O_RDWR | os.O_DIRECT) == BLOCK
    with opened(fs, os.O_RDWR | os.O_DIRECT) as handle:
        fails(errno.EINVAL, lambda: fs.read(handle, 1, 7, os.O_RDWR | os.O_DIRECT))
        assert fs.read(handle, BLOCK - 1, 2, os.O_RDWR) == b"zb"

    assert letters(blocks) == "zbcd"


@pytest.mark.usefixtures("blocks")
def test_where_direct_io_is_left_out_no_request_brings_it(source: Path) -> None:
    with serving(source, effective(allow_direct_io=False)) as fs, opened(fs) as handle:
        assert fs.read(handle, 1, 7, os.O_RDWR | os.O_DIRECT) == b"aaaaaaa"


def test_seal_size_goes_by_the_flags_of_each_write(source: Path, blocks: Path) -> None:
    with serving(source, effective(seal_size=True)) as fs, opened(fs) as handle:
        fails(errno.EPERM, lambda: fs.write(handle, 0, b"x", os.O_RDWR | os.O_APPEND))
        fs.write(handle, 0, b"x", os.O_RDWR)
    assert letters(blocks) == "xbcd"
