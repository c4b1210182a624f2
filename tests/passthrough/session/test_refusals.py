"""Requests that the session refuses, as bytes, for each implementation.

Linux sends few of these requests: the VFS answers the system call itself, so that no test through a
mount finds a session that is wrong here.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux.syscalls import RENAME_NOREPLACE
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import Kernel, text
from tests.support.tools import abi, wire
from tests.support.tools.bodies import BODIES, READ

# The fh of `file`, by access mode, and an fh that was never given out.
READING, WRITING, UNKNOWN = 1, 2, 3
KINDS = ("dir", "link", "fifo", "device")
NAMING = ("LOOKUP", "MKNOD", "MKDIR", "SYMLINK", "CREATE", "UNLINK", "RMDIR", "RENAME", "RENAME2")
COMPONENTS = (b"", b".", b"..", b"a/b", b"/", b"../file", b"file/")


def truncation(handle: int | None = None) -> bytes:
    """Return the body of SETATTR for a size of 1 byte, with an fh if *handle* is one."""
    valid = abi.FATTR_SIZE | (0 if handle is None else abi.FATTR_FH)
    return wire.SETATTR_IN.pack(valid, handle or 0, 1, *[0] * 10)


def creation(flags: int) -> bytes:
    return wire.CREATE_IN.pack(os.O_RDWR | flags, 0o600, 0, 0) + text(b"file")


def rename2(flags: int) -> bytes:
    return wire.RENAME2_IN.pack(abi.ROOT_ID, flags) + text(b"file", b"new")


def other_name(opcode: str, name: bytes) -> bytes:
    """Return the body of *opcode* with *name* in place of its first name."""
    return BODIES[opcode].replace(text(b"name"), text(name), 1)


@pytest.fixture
def tree(kernel: Kernel, source: Path) -> Iterator[Kernel]:
    """Fill the source with a file of each kind, and open `file` as READING and as WRITING."""
    (source / "file").write_bytes(b"content")
    (source / "dir" / "below").mkdir(parents=True)
    (source / "link").symlink_to("file")
    os.mkfifo(source / "fifo")
    os.mknod(source / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    before = state(source)
    # With both ends open, a session that opens the fifo fails the test instead of waiting.
    ends = os.open(source / "fifo", os.O_RDWR)
    number = kernel.lookup(b"file")
    handles = [kernel.open(number, flags) for flags in (os.O_RDONLY, os.O_WRONLY)]
    assert handles == [READING, WRITING]
    yield kernel
    for handle in handles:
        kernel.release(handle)
    os.close(ends)
    assert state(source) == before


def state(source: Path) -> dict[str, tuple[int, int, int]]:
    found = {path.name: path.lstat() for path in source.rglob("*")}
    return {name: (it.st_mode, it.st_size, it.st_nlink) for name, it in found.items()}


REFUSALS = [
    # An fh does only what its access mode allows, read(2), write(2), copy_file_range(2).
    (Opcode.READ, "file", READ.pack(WRITING, 0, 1, 0, 0, 0), errno.EBADF),
    (Opcode.READ, "file", READ.pack(WRITING, 0, 1, 0, 0, os.O_DIRECT), errno.EBADF),
    (Opcode.WRITE, "file", wire.WRITE_IN.pack(READING, 0, 1, 0, 0, 0) + b"x", errno.EBADF),
    (Opcode.FALLOCATE, "file", wire.FALLOCATE_IN.pack(READING, 0, 100, 0), errno.EBADF),
    *(
        (Opcode.COPY_FILE_RANGE, "file", wire.COPY_FILE_RANGE_IN.pack(*fields), errno.EBADF)
        for fields in ((WRITING, 0, 0, WRITING, 3, 1, 0), (READING, 0, 0, READING, 3, 1, 0))
    ),
    (Opcode.SETATTR, "file", truncation(READING), errno.EINVAL),  # ftruncate(2)
    (Opcode.SETATTR, "file", truncation(UNKNOWN), errno.EBADF),
    (Opcode.FLUSH, "file", wire.FLUSH_IN.pack(UNKNOWN, 0), errno.EBADF),
    (Opcode.FSYNC, "file", wire.FSYNC_IN.pack(UNKNOWN, 0), errno.EBADF),
    (Opcode.RELEASE, "file", wire.RELEASE_IN.pack(UNKNOWN, 0, 0, 0), errno.EBADF),
    # The session opens regular files and directories alone: a fifo or device would be the host's.
    *((Opcode.OPEN, name, wire.OPEN_IN.pack(os.O_RDONLY, 0), errno.EBADF) for name in KINDS),
    *((Opcode.SETATTR, name, truncation(), errno.EBADF) for name in KINDS),
    *((Opcode.OPENDIR, name, BODIES["OPENDIR"], errno.EBADF) for name in ("file", *KINDS[1:])),
    # Each kind has its own calls: unlink(2), rmdir(2), path_resolution(7).
    (Opcode.UNLINK, "", text(b"dir"), errno.EISDIR),
    (Opcode.RMDIR, "", text(b"file"), errno.ENOTDIR),
    (Opcode.RMDIR, "", text(b"link"), errno.ENOTDIR),
    (Opcode.RMDIR, "", text(b"dir"), errno.ENOTEMPTY),
    (Opcode.UNLINK, "", text(b"missing"), errno.ENOENT),
    (Opcode.RMDIR, "", text(b"missing"), errno.ENOENT),
    *(
        (Opcode[opcode], parent, BODIES[opcode], errno.ENOTDIR)
        for opcode in (*NAMING, "TMPFILE")
        for parent in ("file", "link")
    ),
    # readlinkat(2) with an empty path, of a descriptor of a file that is no symlink.
    *((Opcode.READLINK, name, b"", errno.ENOENT) for name in ("file", "dir", "fifo")),
    (Opcode.SETATTR, "link", wire.SETATTR_IN.pack(abi.FATTR_MODE, *[0] * 12), errno.EOPNOTSUPP),
    # The name is taken. After ESTALE, the kernel looks it up and checks the permission to open it.
    (Opcode.CREATE, "", creation(os.O_EXCL), errno.EEXIST),
    (Opcode.CREATE, "", creation(0), errno.ESTALE),
    (Opcode.RENAME2, "", rename2(1 << 3), errno.EINVAL),  # none of the RENAME_* flags
    (Opcode.RENAME2, "", rename2(RENAME_NOREPLACE | 1 << 31), errno.EINVAL),
    # A name is one component, so that none leads out of its directory.
    *(
        (Opcode[opcode], "", other_name(opcode, name), errno.EINVAL)
        for opcode in NAMING
        for name in COMPONENTS
        if (opcode, name) not in {("LOOKUP", b"."), ("LOOKUP", b"..")}
    ),
    *(
        (Opcode.RENAME, "", wire.RENAME_IN.pack(abi.ROOT_ID) + text(b"file", name), errno.EINVAL)
        for name in COMPONENTS
    ),
]


def label(value: object) -> str | None:
    """Return the name of an opcode or of an errno, for the name of the test."""
    if isinstance(value, Opcode):
        return value.name
    return errno.errorcode[value] if isinstance(value, int) else None


@pytest.mark.parametrize(("opcode", "name", "body", "error"), REFUSALS, ids=label)
def test_a_request_is_refused_with_this_errno(
    tree: Kernel, opcode: Opcode, name: str, body: bytes, error: int
) -> None:
    nodeid = tree.lookup(*[os.fsencode(name)] * bool(name))

    assert tree.ask(opcode, body, nodeid).error == error


@pytest.mark.parametrize(("name", "error"), [("dir", errno.EPERM), ("file", errno.EINVAL)])
def test_link_is_refused_for_a_directory_and_for_a_path(
    tree: Kernel, name: str, error: int
) -> None:
    new = {"dir": b"second", "file": b"dir/second"}[name]
    body = wire.LINK_IN.pack(tree.lookup(os.fsencode(name))) + text(new)

    assert tree.ask(Opcode.LINK, body).error == error


@pytest.mark.parametrize("opcode", ["READ", "WRITE", "FSYNC", "FALLOCATE", "LSEEK"])
def test_an_fh_of_0_reaches_no_file_by_the_nodeid_of_a_directory(tree: Kernel, opcode: str) -> None:
    """After READDIR without OPENDIR the directory has a stream, of the number that `file` has."""
    directory = tree.lookup(b"dir")
    assert tree.ask(Opcode.READDIR, READ.pack(0, 0, 4096, 0, 0, 0), directory).error == 0
    body = bytes(8) + BODIES[opcode][8:]

    assert tree.ask(Opcode[opcode], body, directory).error == errno.EBADF
