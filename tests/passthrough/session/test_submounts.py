"""Mounts below the source as bytes: part of the volume, or an empty directory (`submounts`)."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from passthrough.options.choices import InodeFileHandles, SessionKind, Submounts
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import Connect, Kernel, attributes, entry, listed, text
from tests.support.tools import abi, wire
from tests.support.tools.bodies import BODIES, READ
from tests.support.tools.host_calls import FS_IOC_SETFLAGS
from tests.support.tools.mounts import MS_BIND
from tests.support.tools.options import effective

MS_REMOUNT = 32
HIDE = effective(session=SessionKind.KERNEL, submounts=Submounts.HIDE)


def bind(what: Path, where: Path, flags: int = 0) -> None:
    syscalls.mount(os.fsencode(what), os.fsencode(where), b"", MS_BIND, b"")
    if flags:
        syscalls.mount(b"", os.fsencode(where), b"", MS_BIND | MS_REMOUNT | flags, b"")


@pytest.fixture
def mounts(source: Path) -> Iterator[Path]:
    """Mount a tmpfs, a directory of the source and a single file below the source."""
    for name in ("disk", "same", "plain"):
        (source / name).mkdir()
    (source / "plain/file").write_text("same")
    (source / "alone").touch()
    syscalls.mount(b"none", os.fsencode(source / "disk"), b"tmpfs", 0, b"")
    (source / "disk/file").write_text("disk")
    (source / "disk/directory").mkdir()
    bind(source / "plain", source / "same")
    bind(source / "plain/file", source / "alone")
    yield source
    for name in ("disk", "same", "alone"):
        syscalls.umount2(os.fsencode(source / name), syscalls.MNT_DETACH)


@pytest.mark.usefixtures("mounts")
def test_submounts_are_crossed_unless_hidden(connect: Connect) -> None:
    kernel = connect()
    paths = ((b"disk", b"file"), (b"same", b"file"), (b"plain", b"file"), (b"alone",))

    assert len({kernel.lookup(*path) for path in paths}) == 4


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize("name", [b"disk", b"same"])
def test_a_hidden_submount_is_an_empty_directory(connect: Connect, name: bytes) -> None:
    kernel = connect(HIDE)
    nodeid = kernel.lookup(name)
    handle = wire.OPEN_OUT.unpack(kernel.ask(Opcode.OPENDIR, BODIES["OPENDIR"], nodeid).body)[0]

    found = attributes(kernel.ask(Opcode.GETATTR, BODIES["GETATTR"], nodeid).body)
    assert stat.S_ISDIR(found["mode"])
    for plus, opcode in enumerate((Opcode.READDIR, Opcode.READDIRPLUS)):
        reply = kernel.ask(opcode, READ.pack(handle, 0, 4096, 0, 0, 0), nodeid)
        assert set(listed(reply.body, plus=bool(plus))) == {b".", b".."}
    for inside in (b"file", b"directory", b"nothing"):
        assert not entry(kernel.ask(Opcode.LOOKUP, text(inside), nodeid).body)["nodeid"]


@pytest.mark.usefixtures("mounts")
def test_a_file_that_is_mounted_on_another_is_refused(connect: Connect) -> None:
    """A file cannot appear as an empty directory, and the file beneath is out of reach."""
    assert connect(HIDE).ask(Opcode.LOOKUP, text(b"alone")).error == errno.EXDEV


def changes(kernel: Kernel, nodeid: int, plain: int) -> list[tuple[Opcode, bytes, int]]:
    """Return requests that would change the directory *nodeid*: opcode, body, nodeid."""
    opened = kernel.ask(Opcode.OPENDIR, BODIES["OPENDIR"], nodeid).body
    handle = wire.OPEN_OUT.unpack(opened)[0]
    file = kernel.lookup(b"plain", b"file")
    ioctl = wire.IOCTL_IN.pack(handle, abi.IOCTL_DIR, FS_IOC_SETFLAGS, 0, 4, 0) + bytes(4)
    return [
        *(
            (Opcode[name], BODIES[name], nodeid)
            for name in ("MKNOD", "MKDIR", "SYMLINK", "CREATE", "TMPFILE", "SETXATTR")
        ),
        (Opcode.REMOVEXATTR, BODIES["REMOVEXATTR"], nodeid),
        (Opcode.IOCTL, ioctl, nodeid),
        (Opcode.LINK, wire.LINK_IN.pack(file) + text(b"new"), nodeid),
        (Opcode.UNLINK, text(b"file"), nodeid),
        (Opcode.RMDIR, text(b"directory"), nodeid),
        (Opcode.RENAME, wire.RENAME_IN.pack(abi.ROOT_ID) + text(b"file", b"new"), nodeid),
        (Opcode.RENAME, wire.RENAME_IN.pack(nodeid) + text(b"file", b"new"), plain),
        (Opcode.SETATTR, wire.SETATTR_IN.pack(abi.FATTR_MODE, *[0] * 12), nodeid),
    ]


@pytest.mark.parametrize("name", [b"disk", b"same"])
def test_nothing_is_changed_in_a_hidden_submount(
    connect: Connect, mounts: Path, name: bytes
) -> None:
    kernel = connect(HIDE)
    nodeid = kernel.lookup(name)

    for opcode, body, parent in changes(kernel, nodeid, kernel.lookup(b"plain")):
        assert kernel.ask(opcode, body, parent).error == errno.EROFS, opcode
    assert (mounts / "disk/file").read_text() == "disk"
    assert (mounts / "plain/file").read_text() == "same"


def test_a_hidden_submount_is_not_removed(connect: Connect, mounts: Path) -> None:
    assert connect(HIDE).ask(Opcode.RMDIR, text(b"disk")).error == errno.EBUSY
    assert (mounts / "disk/file").read_text() == "disk"


@pytest.fixture(params=InodeFileHandles)
def holding(request: pytest.FixtureRequest, connect: Connect, source: Path) -> Iterator[Kernel]:
    """A volume that holds inodes in one way, with two directories."""
    (source / "a").mkdir()
    (source / "a/file").touch()
    (source / "b").mkdir()
    yield connect(effective(session=SessionKind.KERNEL, inode_file_handles=request.param))
    connect()  # ends the session before


def test_a_read_only_bind_mount_stays_read_only(holding: Kernel, source: Path) -> None:
    """The directory that it shows stays writable."""
    bind(source / "a", source / "b", syscalls.MS_RDONLY)
    try:
        through_b, through_a = holding.lookup(b"b", b"file"), holding.lookup(b"a", b"file")

        holding.release(holding.open(through_a))
        assert holding.ask(Opcode.OPEN, BODIES["OPEN"], through_b).error == errno.EROFS
    finally:
        syscalls.umount2(os.fsencode(source / "b"), syscalls.MNT_DETACH)


def test_a_mount_that_is_gone_leaves_the_directory_beneath(holding: Kernel, source: Path) -> None:
    beneath = holding.lookup(b"b")
    bind(source / "a", source / "b")
    above = holding.lookup(b"b")
    assert above != beneath
    holding.tell(Opcode.FORGET, wire.FORGET_IN.pack(1), above)
    syscalls.umount2(os.fsencode(source / "b"), syscalls.MNT_DETACH)

    assert holding.lookup(b"b") == beneath
