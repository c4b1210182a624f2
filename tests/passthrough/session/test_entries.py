"""Names as bytes: found, also `.` and `..`, given, taken away, and forgotten."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from passthrough.linux.syscalls import RENAME_NOREPLACE
from passthrough.options.choices import SessionKind
from passthrough.options.values import Range
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import CALLER, Connect, Kernel, Reply, attributes, entry, text
from tests.support.tools import abi, wire
from tests.support.tools.abi import Notification
from tests.support.tools.bodies import BODIES
from tests.support.tools.host_calls import RENAME_EXCHANGE, RENAME_WHITEOUT
from tests.support.tools.options import effective

LONGEST_NAME = b"n" * 255
LONGEST_TARGET = b"t" * 4095
CREATING = ("MKNOD", "MKDIR", "SYMLINK", "CREATE", "LINK")


def rename(kernel: Kernel, old: bytes, new: bytes, flags: int = 0, to: int = abi.ROOT_ID) -> int:
    """Rename from the root to a name in *to*; return the errno."""
    return kernel.ask(Opcode.RENAME2, wire.RENAME2_IN.pack(to, flags) + text(old, new)).error


@pytest.fixture
def two_files(source: Path) -> tuple[Path, Path]:
    one, other = source / "one", source / "other"
    one.write_bytes(b"one")
    other.write_bytes(b"other")
    return one, other


# Found


def test_an_inode_outlives_its_name(kernel: Kernel, source: Path) -> None:
    (source / "file").write_bytes(b"content")
    nodeid = kernel.lookup(b"file")

    def found() -> dict[str, int]:
        return attributes(kernel.ask(Opcode.GETATTR, BODIES["GETATTR"], nodeid).body)

    (source / "file").rename(source / "other")
    assert found()["size"] == 7
    (source / "other").unlink()
    assert found()["nlink"] == 0


def test_names_may_have_any_bytes_but_slashes(kernel: Kernel, source: Path) -> None:
    for name in (LONGEST_NAME, b"\xff\xfe", b"...", b" ", b"\n"):
        assert kernel.ask(Opcode.MKDIR, wire.MKDIR_IN.pack(0o700, 0) + text(name)).error == 0
        assert os.path.isdir(os.fsencode(source) + b"/" + name)
    assert kernel.ask(Opcode.LOOKUP, text(LONGEST_NAME + b"n")).error == errno.ENAMETOOLONG


@pytest.mark.parametrize("body", [b"", b"name", text(b"name", b"more"), text(b"name") + b"x"])
def test_a_name_that_does_not_end_the_request_is_malformed(kernel: Kernel, body: bytes) -> None:
    for opcode in ("LOOKUP", "UNLINK", "RMDIR"):
        assert kernel.ask(Opcode[opcode], body).error == errno.EIO
    for opcode in ("MKNOD", "MKDIR", "LINK"):
        fixed = bytes(wire.FIXED[Opcode[opcode]].size)
        assert kernel.ask(Opcode[opcode], fixed + body).error == errno.EIO


@pytest.mark.parametrize("body", [b"", text(b"a"), b"a\0b", text(b"a", b"b", b"c")])
def test_two_texts_that_do_not_end_the_request_are_malformed(kernel: Kernel, body: bytes) -> None:
    assert kernel.ask(Opcode.SYMLINK, body).error == errno.EIO
    for opcode in (Opcode.RENAME, Opcode.RENAME2):
        fixed = bytes(wire.FIXED[opcode].size)
        assert kernel.ask(opcode, fixed + body).error == errno.EIO
    assert kernel.notifications == []


def test_dot_is_the_inode_itself(kernel: Kernel, source: Path) -> None:
    """Also of a file: an NFS server looks `.` up to find a file by its number alone."""
    (source / "dir").mkdir()
    (source / "file").touch()
    for names in ((), (b"dir",), (b"file",)):
        nodeid = kernel.lookup(*names)
        assert kernel.lookup(*names, b".") == nodeid


def test_dot_dot_is_the_parent(kernel: Kernel, source: Path) -> None:
    (source / "one" / "two").mkdir(parents=True)
    (source / "file").touch()

    assert kernel.lookup(b"..") == abi.ROOT_ID
    assert kernel.lookup(b"one", b"..") == abi.ROOT_ID
    assert kernel.lookup(b"one", b"two", b"..") == kernel.lookup(b"one")
    nodeid = kernel.lookup(b"file")
    assert kernel.ask(Opcode.LOOKUP, text(b".."), nodeid).error == errno.ENOTDIR


def test_dot_dot_follows_a_directory_that_is_moved_inside(kernel: Kernel, source: Path) -> None:
    (source / "one" / "two").mkdir(parents=True)
    nodeid = kernel.lookup(b"one", b"two")
    (source / "one" / "two").rename(source / "moved")

    assert entry(kernel.ask(Opcode.LOOKUP, text(b".."), nodeid).body)["nodeid"] == abi.ROOT_ID


@pytest.mark.parametrize("beside", ["outside", "source and more"])
def test_dot_dot_does_not_leave_the_source_with_a_directory(
    kernel: Kernel, source: Path, beside: str
) -> None:
    outside = source.parent / beside
    outside.mkdir()
    (source / "one" / "two").mkdir(parents=True)
    nodeids = kernel.lookup(b"one"), kernel.lookup(b"one", b"two")
    (source / "one").rename(outside / "one")

    for nodeid in nodeids:
        assert kernel.ask(Opcode.LOOKUP, text(b".."), nodeid).error == errno.ESTALE


def test_dot_dot_of_a_directory_that_is_gone_is_stale(kernel: Kernel, source: Path) -> None:
    (source / "one" / "two").mkdir(parents=True)
    nodeid = kernel.lookup(b"one", b"two")
    (source / "one" / "two").rmdir()

    assert kernel.ask(Opcode.LOOKUP, text(b".."), nodeid).error == errno.ESTALE
    (source / "one" / "two (deleted)").mkdir()  # as proc_pid_fd(5) shows it
    assert kernel.ask(Opcode.LOOKUP, text(b".."), nodeid).error == errno.ESTALE


def test_the_longest_symlink_is_read(kernel: Kernel, source: Path) -> None:
    created = kernel.ask(Opcode.SYMLINK, text(b"link", LONGEST_TARGET))
    assert created.error == 0
    nodeid = entry(created.body)["nodeid"]

    assert kernel.ask(Opcode.READLINK, nodeid=nodeid).body == LONGEST_TARGET
    assert kernel.ask(Opcode.SYMLINK, text(b"new", LONGEST_TARGET + b"t")).error == (
        errno.ENAMETOOLONG
    )
    assert kernel.ask(Opcode.SYMLINK, text(b"new", b"")).error == errno.ENOENT
    assert os.listdir(source) == ["link"]


# Forgotten


@pytest.mark.logs("(?i)batch_forget|opcode 42")
def test_a_batch_forget_without_its_rows_forgets_nothing(connect: Connect, source: Path) -> None:
    (source / "file").touch()
    kernel = connect()
    nodeid = kernel.lookup(b"file")
    row = wire.FORGET_ONE.pack(nodeid, 1)
    for count in (2, 1 << 28, 0xFFFF_FFFF):  # 2 ** 28 rows have 2 ** 32 bytes
        kernel.tell(Opcode.BATCH_FORGET, wire.BATCH_FORGET_IN.pack(count) + row)
        assert kernel.knows(nodeid)

    kernel.tell(Opcode.BATCH_FORGET, wire.BATCH_FORGET_IN.pack(1) + row + bytes(3))
    assert not kernel.knows(nodeid)


def test_a_batch_forget_of_many_rows(kernel: Kernel, source: Path) -> None:
    """Of as many rows as one request has room for; the kernel sends so many after a `find`."""
    (source / "file").touch()
    nodeid = kernel.lookup(b"file")
    rows = [wire.FORGET_ONE.pack(number, 1) for number in range(1 << 40, (1 << 40) + 60_000)]
    body = wire.BATCH_FORGET_IN.pack(len(rows)) + b"".join(rows)

    kernel.tell(Opcode.BATCH_FORGET, body)
    assert kernel.knows(nodeid)


def test_more_lookups_than_there_are_can_be_forgotten(kernel: Kernel, source: Path) -> None:
    (source / "file").touch()
    nodeid = kernel.lookup(b"file")
    kernel.tell(Opcode.FORGET, wire.FORGET_IN.pack((1 << 64) - 1), nodeid)
    kernel.tell(Opcode.FORGET, wire.FORGET_IN.pack((1 << 64) - 1), abi.ROOT_ID)

    assert not kernel.knows(nodeid)
    assert kernel.knows(abi.ROOT_ID)


# Given


@pytest.mark.parametrize("opcode", CREATING)
def test_creation_in_the_place_of_something_fails(
    kernel: Kernel, source: Path, opcode: str
) -> None:
    """After ESTALE the kernel looks the name up, and checks permissions as for any open(2)."""
    (source / "file").write_bytes(b"kept")
    (source / "name").symlink_to("file")
    body = BODIES[opcode]
    if opcode == "LINK":
        body = wire.LINK_IN.pack(kernel.lookup(b"file")) + text(b"name")

    error = kernel.ask(Opcode[opcode], body).error

    assert error == (errno.ESTALE if opcode == "CREATE" else errno.EEXIST)
    assert (source / "file").read_bytes() == b"kept"
    assert (source / "name").is_symlink()


def as_root(kernel: Kernel, opcode: Opcode, body: bytes) -> Reply:
    """Send a request of root to the root directory."""
    size = wire.IN_HEADER.size + len(body)
    (reply,) = kernel.send(wire.IN_HEADER.pack(size, opcode, 2, abi.ROOT_ID, 0, 0, 1, 0) + body)
    if not reply.error:
        kernel.granted.append(entry(reply.body)["nodeid"])
    return reply


def test_each_kind_of_node_is_made(kernel: Kernel, source: Path) -> None:
    rdev = 1 << 8 | 3  # null(4)
    for kind in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
        body = wire.MKNOD_IN.pack(kind | 0o640, rdev, 0) + text(b"%o" % kind)
        created = as_root(kernel, Opcode.MKNOD, body)
        assert created.error == 0
        found = (source / f"{kind:o}").lstat()
        assert (found.st_mode, entry(created.body)["mode"]) == (kind | 0o640, kind | 0o640)
        if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
            assert (found.st_rdev, entry(created.body)["rdev"]) == (os.makedev(1, 3), rdev)
    body = wire.MKNOD_IN.pack(stat.S_IFDIR | 0o700, 0, 0) + text(b"dir")
    assert as_root(kernel, Opcode.MKNOD, body).error in {errno.EPERM, errno.EINVAL}


def test_sgid_bits_are_inherited_and_kept(kernel: Kernel, source: Path) -> None:
    source.chmod(0o2777)
    os.chown(source, 0, 41_007)
    body = wire.MKNOD_IN.pack(stat.S_IFREG | 0o2755, 0, 0) + text(b"file")
    assert as_root(kernel, Opcode.MKNOD, body).error == 0
    assert kernel.ask(Opcode.MKDIR, wire.MKDIR_IN.pack(0o755, 0) + text(b"dir")).error == 0

    for name, uid in (("file", 0), ("dir", CALLER.uid)):
        found = (source / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o2755, uid)
        assert found.st_gid == 41_007


@pytest.mark.parametrize(("posix_acl", "left"), [(True, 0o650), (False, 0o777)])
def test_this_side_applies_the_umask_with_acls_alone(
    connect: Connect, source: Path, posix_acl: bool, left: int
) -> None:
    before = os.umask(0)  # a worker's
    os.umask(before)
    kernel = connect(effective(session=SessionKind.KERNEL, posix_acl=posix_acl))
    for name, umask in ((b"one", 0o127), (b"two", 0o127)):
        body = wire.MKDIR_IN.pack(0o777, umask) + text(name)
        assert kernel.ask(Opcode.MKDIR, body).error == 0
    body = wire.MKNOD_IN.pack(stat.S_IFREG | 0o777, 0, 0o127) + text(b"node")
    assert kernel.ask(Opcode.MKNOD, body).error == 0

    expected = left if posix_acl else left & ~before
    assert {stat.S_IMODE(path.stat().st_mode) for path in source.iterdir()} == {expected}
    os.umask(before)  # which the session may have changed, if this thread has served


def test_a_symlink_gets_a_second_name_itself(kernel: Kernel, source: Path) -> None:
    (source / "link").symlink_to("nowhere")
    nodeid = kernel.lookup(b"link")

    linked = kernel.ask(Opcode.LINK, wire.LINK_IN.pack(nodeid) + text(b"second"))

    assert entry(linked.body)["nodeid"] == nodeid
    assert entry(linked.body)["nlink"] == 2
    assert (source / "second").readlink() == Path("nowhere")


def test_link_of_a_nodeid_or_into_one_that_is_unknown_is_stale(
    kernel: Kernel, source: Path
) -> None:
    (source / "file").touch()
    nodeid = kernel.lookup(b"file")
    for linked, parent in ((nodeid + (1 << 40), abi.ROOT_ID), (nodeid, nodeid + (1 << 40))):
        body = wire.LINK_IN.pack(linked) + text(b"new")
        assert kernel.ask(Opcode.LINK, body, parent).error == errno.ESTALE
    assert os.listdir(source) == ["file"]


# Taken away


def test_rename_into_another_directory(
    kernel: Kernel, source: Path, two_files: tuple[Path, Path]
) -> None:
    (source / "dir").mkdir()

    assert rename(kernel, b"one", b"moved", to=kernel.lookup(b"dir")) == 0

    assert (source / "dir" / "moved").read_bytes() == b"one"
    assert not two_files[0].exists()
    body = wire.RENAME_IN.pack(1 << 40) + text(b"other", b"moved")
    assert kernel.ask(Opcode.RENAME, body).error == errno.ESTALE
    assert kernel.ask(Opcode.RENAME, body, 1 << 41).error == errno.ESTALE


def test_rename_noreplace_and_exchange(kernel: Kernel, two_files: tuple[Path, Path]) -> None:
    one, other = two_files
    assert rename(kernel, b"one", b"other", RENAME_NOREPLACE) == errno.EEXIST
    assert other.read_bytes() == b"other"
    assert rename(kernel, b"one", b"other", RENAME_EXCHANGE) == 0
    assert (one.read_bytes(), other.read_bytes()) == (b"other", b"one")
    assert rename(kernel, b"one", b"other", RENAME_EXCHANGE | RENAME_NOREPLACE) == errno.EINVAL
    assert rename(kernel, b"one", b"new", RENAME_NOREPLACE) == 0
    assert (one.parent / "new").read_bytes() == b"other"


def test_a_whiteout_is_the_callers(kernel: Kernel, two_files: tuple[Path, Path]) -> None:
    assert rename(kernel, b"one", b"other", RENAME_WHITEOUT) == 0

    left = two_files[0].lstat()
    assert stat.S_ISCHR(left.st_mode)
    assert (left.st_uid, left.st_gid) == CALLER
    assert two_files[1].read_bytes() == b"one"
    assert kernel.notifications == []


def test_a_refused_whiteout_has_the_kernel_forget_the_times_of_both_directories(
    kernel: Kernel, source: Path
) -> None:
    """The host may have entered the whiteout, and taken it out again."""
    (source / "dir").mkdir()
    nodeid = kernel.lookup(b"dir")

    assert rename(kernel, b"missing", b"new", RENAME_WHITEOUT, nodeid) == errno.ENOENT

    assert kernel.notifications == [
        (Notification.INVAL_INODE, wire.NOTIFY_INVAL_INODE_OUT.pack(number, -1, 0))
        for number in (abi.ROOT_ID, nodeid)
    ]


def state(source: Path) -> dict[str, tuple[int, ...]]:
    found = {str(path): path.lstat() for path in source.rglob("*")}
    return {name: (it.st_ino, it.st_mode, it.st_nlink, it.st_uid) for name, it in found.items()}


def test_nothing_changes_a_file_of_an_unmapped_owner(connect: Connect, source: Path) -> None:
    (source / "dir").mkdir()
    (source / "file").touch()
    (source / "theirs").touch()
    (source / "closed").mkdir()
    for name in ("dir", "file"):
        os.chown(source / name, 41_001, 41_002)
    os.chown(source, 41_001, 41_002)
    ranges = (Range(CALLER.uid, 41_001, 1),), (Range(CALLER.gid, 41_002, 1),)
    config = effective(session=SessionKind.KERNEL, map_uid=ranges[0], map_gid=ranges[1])
    kernel = connect(config)
    before = state(source)
    closed, nodeid = kernel.lookup(b"closed"), kernel.lookup(b"theirs")
    body = {
        name: wire.RENAME_IN.pack(1) + text(*name)
        for name in ((b"theirs", b"new"), (b"file", b"theirs"))
    }

    for opcode, parent, data in (
        (Opcode.UNLINK, abi.ROOT_ID, text(b"theirs")),
        (Opcode.RMDIR, abi.ROOT_ID, text(b"closed")),
        (Opcode.LINK, abi.ROOT_ID, wire.LINK_IN.pack(nodeid) + text(b"new")),
        *((Opcode.RENAME, abi.ROOT_ID, data) for data in body.values()),
        *((Opcode[name], closed, BODIES[name]) for name in ("MKNOD", "MKDIR", "SYMLINK")),
        (Opcode.MKNOD, abi.ROOT_ID, wire.MKNOD_IN.pack(stat.S_IFCHR, 0, 0) + text(b"new")),
        (
            Opcode.RENAME2,
            abi.ROOT_ID,
            wire.RENAME2_IN.pack(1, RENAME_WHITEOUT) + text(b"file", b"new"),
        ),
    ):
        assert kernel.ask(opcode, data, parent).error == errno.EPERM, opcode
    assert state(source) == before


def test_a_socket_is_found_and_removed(kernel: Kernel, source: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "socket"))
    found = entry(kernel.ask(Opcode.LOOKUP, text(b"socket")).body)

    assert stat.S_ISSOCK(found["mode"])
    assert kernel.ask(Opcode.UNLINK, text(b"socket")).error == 0
    assert os.listdir(source) == []
