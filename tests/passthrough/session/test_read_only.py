"""Volumes that refuse changes, as bytes: `readonly` any change, `seal_size` those of a size."""

import errno
import os
from pathlib import Path

import pytest

from passthrough.options.choices import SessionKind
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import Connect, Kernel, text
from tests.support.tools import abi, wire
from tests.support.tools.bodies import BODIES, READ
from tests.support.tools.options import effective

CONTENT = b"0123456789"
READONLY = effective(session=SessionKind.KERNEL, readonly=True)


def setattr_(valid: int, size: int = 0) -> bytes:
    return wire.SETATTR_IN.pack(valid, 0, size, *[0] * 7, 0o600, 0, 0)


# The body of each request that changes something, and the nodeid that it is sent to.
IN_ROOT = {
    **{name: (Opcode[name], BODIES[name]) for name in ("MKNOD", "MKDIR", "SYMLINK", "CREATE")},
    "TMPFILE": (Opcode.TMPFILE, BODIES["TMPFILE"]),
    "UNLINK": (Opcode.UNLINK, text(b"file")),
    "RMDIR": (Opcode.RMDIR, text(b"dir")),
    "RENAME": (Opcode.RENAME, wire.RENAME_IN.pack(abi.ROOT_ID) + text(b"file", b"new")),
    "RENAME2": (Opcode.RENAME2, wire.RENAME2_IN.pack(abi.ROOT_ID, 0) + text(b"file", b"new")),
}
OF_FILE = {
    "chmod": (Opcode.SETATTR, setattr_(abi.FATTR_MODE)),
    "truncate": (Opcode.SETATTR, setattr_(abi.FATTR_SIZE)),
    "times": (Opcode.SETATTR, setattr_(abi.FATTR_MTIME)),
    "open to write": (Opcode.OPEN, wire.OPEN_IN.pack(os.O_WRONLY, 0)),
    "open to do both": (Opcode.OPEN, wire.OPEN_IN.pack(os.O_RDWR, 0)),
    "open to truncate": (Opcode.OPEN, wire.OPEN_IN.pack(os.O_RDONLY | os.O_TRUNC, 0)),
    "SETXATTR": (Opcode.SETXATTR, BODIES["SETXATTR"]),
    "REMOVEXATTR": (Opcode.REMOVEXATTR, BODIES["REMOVEXATTR"]),
}


@pytest.fixture
def files(source: Path) -> Path:
    """A file and a directory."""
    (source / "file").write_bytes(CONTENT)
    os.setxattr(source / "file", "user.a", b"old")
    (source / "dir").mkdir()
    return source


def state(directory: Path) -> object:
    found = (directory / "file").stat()
    file = (found.st_mode, found.st_uid, found.st_nlink, found.st_size, found.st_mtime_ns)
    value = os.getxattr(directory / "file", "user.a")
    return sorted(os.listdir(directory)), file, (directory / "file").read_bytes(), value


def requests(kernel: Kernel) -> dict[str, tuple[Opcode, bytes, int]]:
    """Return all requests that change something: opcode, body, nodeid."""
    file = kernel.lookup(b"file")
    link = (Opcode.LINK, wire.LINK_IN.pack(file) + text(b"new"))
    return {
        **{name: (*request, abi.ROOT_ID) for name, request in (IN_ROOT | {"LINK": link}).items()},
        **{name: (*request, file) for name, request in OF_FILE.items()},
    }


def test_a_read_only_volume_refuses_every_change(connect: Connect, files: Path) -> None:
    """The flags of the mount alone do not suffice: another mount of it may lack them."""
    before, kernel = state(files), connect(READONLY)

    answers = {name: kernel.ask(*request).error for name, request in requests(kernel).items()}

    assert answers == dict.fromkeys(answers, errno.EROFS)
    assert state(files) == before


@pytest.mark.parametrize("name", [*IN_ROOT, "LINK", *OF_FILE])
def test_another_volume_refuses_none(connect: Connect, files: Path, name: str) -> None:
    kernel = connect()
    opcode, body, nodeid = requests(kernel)[name]

    assert kernel.ask(opcode, body, nodeid).error == 0
    assert files.exists()


def test_a_read_only_volume_is_read(connect: Connect, files: Path) -> None:
    kernel = connect(READONLY)
    nodeid = kernel.lookup(b"file")
    handle = kernel.open(nodeid, os.O_RDONLY)

    assert kernel.ask(Opcode.READ, READ.pack(handle, 0, 100, 0, 0, 0), nodeid).body == CONTENT
    assert kernel.ask(Opcode.FSYNC, wire.FSYNC_IN.pack(handle, 0), nodeid).error == 0
    assert kernel.ask(Opcode.FLUSH, wire.FLUSH_IN.pack(handle, 0), nodeid).error == 0
    assert kernel.ask(Opcode.GETXATTR, BODIES["GETXATTR"], nodeid).body == b"old"
    assert (files / "file").exists()
    kernel.release(handle)


@pytest.mark.parametrize(
    ("valid", "size", "error"),
    [
        (abi.FATTR_SIZE, 1, errno.EPERM),
        (abi.FATTR_SIZE, 100, errno.EPERM),
        (abi.FATTR_SIZE, len(CONTENT), errno.EPERM),
        (abi.FATTR_SIZE | abi.FATTR_MODE, 1, errno.EPERM),
        (abi.FATTR_MODE, 0, 0),
    ],
)
def test_setattr_keeps_a_sealed_size(
    connect: Connect, files: Path, valid: int, size: int, error: int
) -> None:
    before = state(files)
    kernel = connect(effective(session=SessionKind.KERNEL, seal_size=True))

    reply = kernel.ask(Opcode.SETATTR, setattr_(valid, size), kernel.lookup(b"file"))

    assert reply.error == error
    assert (state(files) == before) is bool(error)


def test_an_option_that_another_one_overrules_is_not_in_force(
    connect: Connect, files: Path
) -> None:
    """With writeback, a file that is opened to be written could be read."""
    kernel = connect(effective(session=SessionKind.KERNEL, seal_size=True, writeback=True))
    handle = kernel.open(kernel.lookup(b"file"), os.O_WRONLY)

    assert kernel.ask(Opcode.READ, READ.pack(handle, 0, 1, 0, 0, 0)).error == errno.EBADF
    assert (files / "file").exists()
