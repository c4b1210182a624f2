"""Every opcode: requests and answers as bytes, over a real directory, for each implementation."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.core.face import opcodes
from passthrough.options.choices import CachePolicy, SessionKind
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import (
    CALLER,
    Connect,
    Kernel,
    attributes,
    entry,
    listed,
    opcode_names,
    text,
)
from tests.support.tools import abi, wire
from tests.support.tools.abi import Notification
from tests.support.tools.bodies import BODIES, READ, WITHOUT_ANSWER, WITHOUT_OPERATION
from tests.support.tools.options import effective

Opened = Callable[..., tuple[int, int]]


@pytest.fixture
def opened(kernel: Kernel) -> Opened:
    """Open a name; return its nodeid and its fh."""

    def open_(name: bytes, flags: int = os.O_RDWR) -> tuple[int, int]:
        nodeid = kernel.lookup(name)
        return nodeid, kernel.open(nodeid, flags)

    return open_


def test_there_is_a_body_for_every_opcode_with_a_handler() -> None:
    assert set(BODIES) == set(opcode_names())


@pytest.mark.parametrize("number", sorted({*range(60), 4096, 0xFFFF_FFFF} - set(opcodes())))
def test_an_opcode_without_handler_is_enosys(kernel: Kernel, number: int) -> None:
    assert kernel.ask(number, b"\0" * 200).error == errno.ENOSYS


def test_lookup_finds_a_name_and_counts_once(kernel: Kernel, source: Path) -> None:
    (source / "file").touch()

    found = entry(kernel.ask(Opcode.LOOKUP, text(b"file")).body)

    assert found["ino"] == (source / "file").stat().st_ino
    assert kernel.knows(found["nodeid"])
    kernel.forget_all()


@pytest.mark.parametrize(
    ("cache", "error", "seconds"), [(CachePolicy.AUTO, 0, 1), (CachePolicy.NEVER, errno.ENOENT, 0)]
)
def test_the_cache_policy_decides_on_negative_entries(
    connect: Connect, cache: CachePolicy, error: int, seconds: int
) -> None:
    kernel = connect(effective(cache=cache, session=SessionKind.KERNEL, posix_acl=False))

    reply = kernel.ask(Opcode.LOOKUP, text(b"absent"))

    assert reply.error == error
    if not error:
        assert entry(reply.body)["entry_valid"] == seconds
        assert entry(reply.body)["nodeid"] == 0


def test_forget_and_batch_forget_take_lookups_back(kernel: Kernel, source: Path) -> None:
    for name in ("one", "two"):
        (source / name).touch()
    one, two = kernel.lookup(b"one"), kernel.lookup(b"two")
    kernel.granted.clear()

    kernel.tell(Opcode.FORGET, wire.FORGET_IN.pack(1), one)
    assert [kernel.knows(one), kernel.knows(two)] == [False, True]

    rows = b"".join(wire.FORGET_ONE.pack(nodeid, 1) for nodeid in (one, two))
    kernel.tell(Opcode.BATCH_FORGET, wire.BATCH_FORGET_IN.pack(2) + rows)
    assert not kernel.knows(two)


def test_getattr_and_setattr(kernel: Kernel, source: Path) -> None:
    (source / "file").write_bytes(b"content")
    number = kernel.lookup(b"file")
    everything = (
        *(abi.FATTR_MODE, abi.FATTR_UID, abi.FATTR_GID, abi.FATTR_SIZE),
        *(abi.FATTR_ATIME, abi.FATTR_MTIME),
    )

    fields = (sum(everything), 0, 3, 0, 10, -2, 0, 11, 12, 0, 0o100640, 41_001, 41_002)
    changed = attributes(kernel.ask(Opcode.SETATTR, wire.SETATTR_IN.pack(*fields), number).body)

    assert changed == attributes(kernel.ask(Opcode.GETATTR, BODIES["GETATTR"], number).body)
    found = (source / "file").stat()
    assert (found.st_mode, found.st_uid, found.st_gid) == (0o100640, 41_001, 41_002)
    assert (found.st_size, found.st_atime_ns, found.st_mtime_ns) == (
        3,
        10 * 10**9 + 11,
        -(2 * 10**9) + 12,
    )


def test_setattr_changes_only_the_valid_fields(kernel: Kernel, source: Path) -> None:
    (source / "file").write_bytes(b"content")
    before = (source / "file").stat()

    body = wire.SETATTR_IN.pack(abi.FATTR_ATIME_NOW, 9, 9, 9, 9, 9, 9, 9, 9, 9, 0o777, 9, 9)
    assert kernel.ask(Opcode.SETATTR, body, kernel.lookup(b"file")).error == 0

    after = (source / "file").stat()
    assert after.st_atime_ns > before.st_atime_ns
    for field in ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns"):
        assert getattr(after, field) == getattr(before, field)


@pytest.mark.parametrize("valid", [0, abi.FATTR_CTIME, abi.FATTR_FH | abi.FATTR_LOCKOWNER])
@pytest.mark.parametrize(("owner", "left"), [(CALLER.uid, 0o755), (CALLER.uid + 1, 0o6755)])
def test_an_empty_setattr_clears_the_suid_and_sgid_bits_of_the_callers_own_file(
    kernel: Kernel, source: Path, valid: int, owner: int, left: int
) -> None:
    (source / "file").touch()
    os.chown(source / "file", owner, 0)
    (source / "file").chmod(0o6755)

    body = wire.SETATTR_IN.pack(valid, *(0,) * 12)
    assert kernel.ask(Opcode.SETATTR, body, kernel.lookup(b"file")).error == 0

    assert stat.S_IMODE((source / "file").stat().st_mode) == left


@pytest.mark.parametrize(("flags", "left"), [(os.O_WRONLY, 0o755), (os.O_RDONLY, 0o6755)])
def test_an_empty_setattr_clears_the_bits_of_a_file_that_is_open_for_writing(
    kernel: Kernel,
    source: Path,
    opened: Opened,
    flags: int,
    left: int,
) -> None:
    (source / "file").touch()
    os.chown(source / "file", CALLER.uid + 1, 0)
    (source / "file").chmod(0o6755)
    number, handle = opened(b"file", flags)

    reply = kernel.ask(Opcode.SETATTR, wire.SETATTR_IN.pack(*(0,) * 13), number)

    assert stat.S_IMODE(attributes(reply.body)["mode"]) == left
    assert stat.S_IMODE((source / "file").stat().st_mode) == left
    kernel.release(handle)


@pytest.mark.parametrize(
    ("owner", "mode", "left"),
    [
        ((CALLER.uid, 0), 0o2644, 0o2644),
        ((0, CALLER.gid), 0o2644, 0o2644),
        ((CALLER.uid, 0), 0o6644, 0o2644),
        ((0, 0), 0o2644, 0o644),
        ((CALLER.uid, 0), 0o2755, 0o755),
    ],
)
def test_the_owner_and_the_group_keep_an_sgid_bit_without_group_execution(  # noqa: PLR0917
    kernel: Kernel,
    source: Path,
    opened: Opened,
    owner: tuple[int, int],
    mode: int,
    left: int,
) -> None:
    path = source / "file"
    path.write_bytes(b"1234")
    os.chown(path, *owner)
    number, handle = opened(b"file", os.O_WRONLY)
    truncate = wire.SETATTR_IN.pack(abi.FATTR_SIZE | abi.FATTR_KILL_SUIDGID, 0, 2, *[0] * 10)
    trunc = wire.OPEN_IN.pack(os.O_WRONLY | os.O_TRUNC, abi.OPEN_KILL_SUIDGID)
    for opcode, body in (
        (Opcode.SETATTR, truncate),
        (Opcode.SETATTR, wire.SETATTR_IN.pack(*(0,) * 13)),
        (Opcode.OPEN, trunc),
    ):
        path.chmod(mode)
        assert kernel.ask(opcode, body, number).error == 0
        assert stat.S_IMODE(path.stat().st_mode) == left, opcode
    kernel.release(handle)
    kernel.release(handle + 1)


@pytest.mark.parametrize("mode", [0o6755, 0o755])
@pytest.mark.parametrize("opcode", [Opcode.WRITE, Opcode.FALLOCATE, Opcode.COPY_FILE_RANGE])
def test_the_kernel_is_notified_if_a_file_loses_its_suid_and_sgid_bits(
    kernel: Kernel,
    source: Path,
    opened: Opened,
    opcode: Opcode,
    mode: int,
) -> None:
    (source / "file").write_bytes(b"1234")
    (source / "file").chmod(mode)
    number, handle = opened(b"file")
    body = {
        Opcode.WRITE: wire.WRITE_IN.pack(handle, 0, 1, abi.WRITE_KILL_SUIDGID, 0, 0) + b"x",
        Opcode.FALLOCATE: wire.FALLOCATE_IN.pack(handle, 0, 8, 0),
        Opcode.COPY_FILE_RANGE: wire.COPY_FILE_RANGE_IN.pack(handle, 0, number, handle, 2, 2, 0),
    }[opcode]
    kernel.notifications.clear()

    assert kernel.ask(opcode, body, number).error == 0

    forgotten = (Notification.INVAL_INODE, wire.NOTIFY_INVAL_INODE_OUT.pack(number, -1, 0))
    assert kernel.notifications == ([forgotten] if mode == 0o6755 else [])
    kernel.release(handle)


def test_new_files_belong_to_the_caller(kernel: Kernel, source: Path) -> None:
    for opcode, name, body in (
        (Opcode.MKNOD, "fifo", wire.MKNOD_IN.pack(stat.S_IFIFO | 0o640, 0, 0o777)),
        (Opcode.MKDIR, "dir", wire.MKDIR_IN.pack(0o1750, 0o777)),
        (Opcode.CREATE, "file", wire.CREATE_IN.pack(os.O_RDWR, 0o100644, 0o777, 0)),
    ):
        created = kernel.ask(opcode, body + text(name.encode()))
        assert created.error == 0, name
        found = os.lstat(source / name)
        assert (found.st_uid, found.st_gid) == CALLER
        assert entry(created.body)["mode"] == found.st_mode
    assert kernel.ask(Opcode.SYMLINK, text(b"link", b"to/where")).error == 0

    assert os.lstat(source / "link").st_uid == CALLER.uid
    assert {
        name: stat.S_IMODE(os.lstat(source / name).st_mode) for name in ("fifo", "dir", "file")
    } == {
        "fifo": 0o640,
        "dir": 0o1750,
        "file": 0o644,
    }
    link = entry(kernel.ask(Opcode.LOOKUP, text(b"link")).body)["nodeid"]
    assert kernel.ask(Opcode.READLINK, nodeid=link).body == b"to/where"
    kernel.release(wire.OPEN_OUT.unpack_from(created.body, wire.ENTRY_OUT.size)[0])


def test_link_rename_rmdir_and_unlink(kernel: Kernel, source: Path) -> None:
    (source / "file").write_text("x")
    (source / "dir").mkdir()
    number, directory = kernel.lookup(b"file"), kernel.lookup(b"dir")

    linked = kernel.ask(Opcode.LINK, wire.LINK_IN.pack(number) + text(b"second"), directory)
    assert entry(linked.body)["nodeid"] == number
    assert (
        kernel.ask(
            Opcode.RENAME, wire.RENAME_IN.pack(1) + text(b"second", b"third"), directory
        ).error
        == 0
    )
    noreplace = wire.RENAME2_IN.pack(1, 1) + text(b"file", b"third")
    assert kernel.ask(Opcode.RENAME2, noreplace).error == errno.EEXIST
    assert sorted(os.listdir(source)) == ["dir", "file", "third"]
    assert kernel.ask(Opcode.RMDIR, text(b"file")).error == errno.ENOTDIR
    assert kernel.ask(Opcode.RMDIR, text(b"dir")).error == 0
    assert kernel.ask(Opcode.UNLINK, text(b"file")).error == 0

    assert os.listdir(source) == ["third"]


def test_reading_and_writing(kernel: Kernel, source: Path, opened: Opened) -> None:
    (source / "file").write_bytes(b"0123456789")
    number, handle = opened(b"file")

    written = kernel.ask(Opcode.WRITE, wire.WRITE_IN.pack(handle, 8, 4, 0, 0, 0) + b"abcd", number)
    read = kernel.ask(Opcode.READ, READ.pack(handle, 6, 100, 0, 0, 0), number)

    assert wire.WRITE_OUT.unpack(written.body) == (4,)
    assert read.body == b"67abcd"
    for opcode, body in (
        (Opcode.FSYNC, wire.FSYNC_IN.pack(handle, 0)),
        (Opcode.FSYNC, wire.FSYNC_IN.pack(handle, abi.FSYNC_FDATASYNC)),
        (Opcode.FLUSH, wire.FLUSH_IN.pack(handle, 0)),
        (Opcode.RELEASE, wire.RELEASE_IN.pack(handle, 0, 0, 0)),
    ):
        assert kernel.ask(opcode, body, number)[1:] == (0, b"")
    assert kernel.ask(Opcode.READ, READ.pack(handle, 0, 1, 0, 0, 0), number).error == errno.EBADF


@pytest.mark.parametrize(("flag", "mode"), [(abi.WRITE_KILL_SUIDGID, 0o755), (0, 0o6755)])
def test_a_write_clears_suid_and_sgid_bits_if_the_flag_is_set(
    kernel: Kernel, source: Path, opened: Opened, flag: int, mode: int
) -> None:
    (source / "program").touch()
    (source / "program").chmod(0o6755)
    number, handle = opened(b"program")

    assert (
        kernel.ask(Opcode.WRITE, wire.WRITE_IN.pack(handle, 0, 1, flag, 0, 0) + b"x", number).error
        == 0
    )

    assert stat.S_IMODE((source / "program").stat().st_mode) == mode
    kernel.release(handle)


@pytest.mark.parametrize(("flag", "mode"), [(abi.FATTR_KILL_SUIDGID, 0o755), (0, 0o6755)])
def test_truncating_clears_suid_and_sgid_bits_if_the_flag_is_set(
    kernel: Kernel, source: Path, flag: int, mode: int
) -> None:
    (source / "program").write_bytes(b"1234")
    (source / "program").chmod(0o6755)
    body = wire.SETATTR_IN.pack(abi.FATTR_SIZE | flag, 0, 2, *[0] * 10)

    assert kernel.ask(Opcode.SETATTR, body, kernel.lookup(b"program")).error == 0

    assert stat.S_IMODE((source / "program").stat().st_mode) == mode


@pytest.mark.parametrize(("flag", "mode"), [(abi.OPEN_KILL_SUIDGID, 0o755), (0, 0o6755)])
def test_o_trunc_clears_suid_and_sgid_bits_if_the_flag_is_set(
    kernel: Kernel, source: Path, flag: int, mode: int
) -> None:
    (source / "program").write_bytes(b"1234")
    (source / "program").chmod(0o6755)
    body = wire.OPEN_IN.pack(os.O_WRONLY | os.O_TRUNC, flag)

    reply = kernel.ask(Opcode.OPEN, body, kernel.lookup(b"program"))

    assert stat.S_IMODE((source / "program").stat().st_mode) == mode
    kernel.release(wire.OPEN_OUT.unpack(reply.body)[0])


def test_extended_attributes(kernel: Kernel, source: Path) -> None:
    (source / "file").touch()
    number = kernel.lookup(b"file")

    assert kernel.ask(Opcode.SETXATTR, BODIES["SETXATTR"], number).error == 0
    create = wire.SETXATTR_IN.pack(5, os.XATTR_CREATE, 0) + text(b"user.a") + b"other"
    assert kernel.ask(Opcode.SETXATTR, create, number).error == errno.EEXIST
    assert kernel.ask(Opcode.GETXATTR, BODIES["GETXATTR"], number).body == b"value"
    ask_size = wire.GETXATTR_IN.pack(0)
    assert kernel.ask(Opcode.GETXATTR, ask_size + text(b"user.a"), number).body == words8(5)
    assert kernel.ask(Opcode.LISTXATTR, ask_size, number).body == words8(len(b"user.a\0"))
    assert kernel.ask(Opcode.LISTXATTR, BODIES["LISTXATTR"], number).body == b"user.a\0"
    assert kernel.ask(Opcode.LISTXATTR, wire.GETXATTR_IN.pack(3), number).error == errno.ERANGE
    acl = wire.GETXATTR_IN.pack(100) + text(b"system.posix_acl_access")
    assert kernel.ask(Opcode.GETXATTR, acl, number).error == errno.EOPNOTSUPP
    assert kernel.ask(Opcode.REMOVEXATTR, BODIES["REMOVEXATTR"], number).error == 0

    assert os.listxattr(source / "file") == []


def words8(size: int) -> bytes:
    return wire.GETXATTR_OUT.pack(size)


def test_statfs_and_access(kernel: Kernel, source: Path) -> None:
    (source / "file").touch(0o640)
    host = os.statvfs(source)

    blocks, *_, namelen, frsize = wire.STATFS_OUT.unpack(kernel.ask(Opcode.STATFS).body)

    assert (blocks, namelen, frsize) == (host.f_blocks, host.f_namemax, host.f_frsize)
    number = kernel.lookup(b"file")
    assert kernel.ask(Opcode.ACCESS, wire.ACCESS_IN.pack(os.R_OK), number).error == errno.EACCES
    assert kernel.ask(Opcode.ACCESS, wire.ACCESS_IN.pack(os.F_OK), number).error == 0


@pytest.mark.parametrize("plus", [False, True])
def test_a_listing_in_any_number_of_parts(kernel: Kernel, source: Path, plus: bool) -> None:
    names = {f"name-{number:03}" * 3 for number in range(100)}
    for name in names:
        (source / name).touch()
    handle, flags, _ = wire.OPEN_OUT.unpack(kernel.ask(Opcode.OPENDIR, BODIES["OPENDIR"]).body)
    opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
    found: dict[bytes, tuple[int, int, int, int]] = {}
    offset = parts = 0
    while True:
        body = kernel.ask(opcode, READ.pack(handle, offset, 1000, 0, 0, 0)).body
        if not body:
            break
        part = listed(body, plus=plus)
        assert len(body) <= 1000
        assert not part.keys() & found.keys()
        found |= part
        offset = max(part.items(), key=lambda item: list(part).index(item[0]))[1][2]
        parts += 1

    assert flags == 0
    assert parts > 4
    assert {os.fsdecode(name) for name in found} == names | {".", ".."}
    for name in names:
        nodeid, ino, _, kind = found[os.fsencode(name)]
        assert ino == (source / name).stat().st_ino
        assert kind == 8  # DT_REG
        assert (nodeid != 0) == plus
    assert (found[b"."][0], found[b"."][3]) == (0, 4)
    # Each entry in an answer counts as one lookup; an entry that did not fit counts as none.
    nodeids = {found[os.fsencode(name)][0] for name in names} - {0}
    assert len(nodeids) == (len(names) if plus else 0)
    assert all(kernel.knows(nodeid) for nodeid in nodeids)
    assert sorted(kernel.granted) == sorted(nodeids)
    kernel.forget_all()
    assert kernel.ask(Opcode.FSYNCDIR, wire.FSYNC_IN.pack(handle, 0)).error == 0
    assert kernel.ask(Opcode.RELEASEDIR, wire.RELEASE_IN.pack(handle, 0, 0, 0)).error == 0
    assert kernel.ask(opcode, READ.pack(handle, 0, 1000, 0, 0, 0)).error == errno.EBADF


def test_an_unknown_nodeid_is_estale(kernel: Kernel) -> None:
    """ESTALE makes the kernel look the name up again."""
    on_inodes = set(BODIES) - WITHOUT_ANSWER - WITHOUT_OPERATION
    by_handle = {"READ", "WRITE", "FLUSH", "FSYNC", "RELEASE", "READDIR", "READDIRPLUS"}
    by_handle |= {"RELEASEDIR", "FSYNCDIR", "GETLK", "SETLK", "SETLKW", "IOCTL", "FALLOCATE"}
    by_handle |= {"LSEEK", "COPY_FILE_RANGE", "COPY_FILE_RANGE_64"}

    errors = {
        name: kernel.ask(Opcode[name], BODIES[name], nodeid=4_711).error
        for name in on_inodes - by_handle
    }

    assert errors == dict.fromkeys(on_inodes - by_handle, errno.ESTALE)
