"""Every opcode, asked in bytes over a file system on a real directory, and answered in bytes."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.options.choices import CachePolicy
from passthrough.session import abi, wire
from passthrough.session.abi import Notification, Opcode
from passthrough.session.channel import DeviceChannel
from passthrough.session.handlers.table import HANDLERS
from tests.support.fakes.kernel import (
    Kernel,
    attributes,
    entry,
    listed,
    message,
    opcode_names,
    text,
)
from tests.support.tools.bodies import BODIES, READ, WITHOUT_ANSWER, WITHOUT_OPERATION
from tests.support.tools.direct import CALLER, number_of
from tests.support.tools.options import effective
from tests.support.tools.requests import Recording


@pytest.fixture
def kernel(fs: PassthroughFs) -> Kernel:
    return Kernel(fs)


@pytest.fixture
def opened(kernel: Kernel, source: Path) -> Callable[[bytes, int], tuple[int, int]]:
    """Open a name; gives its inode number and its handle."""

    def open_(name: bytes, flags: int = os.O_RDWR) -> tuple[int, int]:
        number = number_of(kernel.session.fs, name)
        reply = kernel.ask(Opcode.OPEN, wire.OPEN_IN.pack(flags, 0), number)
        assert reply.error == 0, os.strerror(reply.error)
        return number, wire.OPEN_OUT.unpack(reply.body)[0]

    assert source.is_dir()
    return open_


def test_the_bodies_above_are_of_every_opcode_that_is_answered() -> None:
    assert set(BODIES) == set(opcode_names())


@pytest.mark.parametrize("number", sorted({*range(60), 4096, 0xFFFF_FFFF} - set(HANDLERS)))
def test_what_is_not_in_the_table_is_enosys(number: int) -> None:
    assert Kernel(Recording()).ask(number, b"\0" * 200).error == errno.ENOSYS


def test_lookup_finds_and_counts(kernel: Kernel, fs: PassthroughFs, source: Path) -> None:
    (source / "file").touch()

    found = entry(kernel.ask(Opcode.LOOKUP, text(b"file")).body)

    assert found["nodeid"] == (source / "file").stat().st_ino
    assert fs.inodes[found["nodeid"]].lookups == 1


@pytest.mark.parametrize(
    ("cache", "error", "seconds"), [(CachePolicy.AUTO, 0, 1), (CachePolicy.NEVER, errno.ENOENT, 0)]
)
def test_that_there_is_no_name_is_remembered_if_it_may_be(
    source: Path, cache: CachePolicy, error: int, seconds: int
) -> None:
    own = PassthroughFs(effective(cache=cache), os.open(source, os.O_PATH | os.O_DIRECTORY))

    reply = Kernel(own).ask(Opcode.LOOKUP, text(b"absent"))

    assert reply.error == error
    if not error:
        assert entry(reply.body)["entry_valid"] == seconds
        assert entry(reply.body)["nodeid"] == 0
    own.close()


def test_a_nudge_asks_for_nothing_of_a_file_that_the_kernel_knows(
    kernel: Kernel, fs: PassthroughFs, source: Path
) -> None:
    (source / "directory").mkdir()
    (source / "file").touch()
    number_of(fs, b"directory")
    assert not kernel.session.wake_readers(2)
    number = number_of(fs, b"file")

    assert kernel.session.wake_readers(2)

    asked = wire.NOTIFY_RETRIEVE_OUT.pack(0, number, 0, 0)
    assert kernel.channel.notifications == 2 * [(Notification.RETRIEVE, asked)]
    reply = wire.NOTIFY_RETRIEVE_IN.pack(0, 0)
    kernel.tell(Opcode.NOTIFY_REPLY, reply, number)


def test_a_long_forget_leaves_no_pages_behind(kernel: Kernel, source: Path) -> None:
    rows = b"\xff" * wire.FORGET_ONE.size * 8_000  # of inodes that there are not
    raw = message(Opcode.BATCH_FORGET, wire.BATCH_FORGET_IN.pack(8_000) + rows, 0, 2)
    with (source / "file").open("wb") as file:  # which is not used
        channel = DeviceChannel(file.fileno())
        request = channel.open_request()
    request.into[0][: len(raw)] = raw
    request.length = len(raw)

    kernel.session.answer(request, channel)

    assert not any(request.into[0])
    assert request.length == 0


def test_forget_takes_back(kernel: Kernel, fs: PassthroughFs, source: Path) -> None:
    numbers = []
    for name in ("one", "two"):
        (source / name).touch()
        body = kernel.ask(Opcode.LOOKUP, text(name.encode())).body
        numbers.append(entry(body)["nodeid"])
        fs.delivered.clear()  # type: ignore[attr-defined] # the fixture's own record of them

    kernel.tell(Opcode.FORGET, wire.FORGET_IN.pack(1), numbers[0])
    assert numbers[0] not in fs.inodes

    rows = b"".join(wire.FORGET_ONE.pack(number, 1) for number in numbers)
    kernel.tell(Opcode.BATCH_FORGET, wire.BATCH_FORGET_IN.pack(2) + rows)
    assert len(fs.inodes) == 1


def test_getattr_and_setattr(kernel: Kernel, fs: PassthroughFs, source: Path) -> None:
    (source / "file").write_bytes(b"content")
    number = number_of(fs, b"file")
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


def test_setattr_leaves_what_is_not_meant(kernel: Kernel, fs: PassthroughFs, source: Path) -> None:
    (source / "file").write_bytes(b"content")
    before = (source / "file").stat()

    body = wire.SETATTR_IN.pack(abi.FATTR_ATIME_NOW, 9, 9, 9, 9, 9, 9, 9, 9, 9, 0o777, 9, 9)
    assert kernel.ask(Opcode.SETATTR, body, number_of(fs, b"file")).error == 0

    after = (source / "file").stat()
    assert after.st_atime_ns > before.st_atime_ns
    for field in ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns"):
        assert getattr(after, field) == getattr(before, field)


@pytest.mark.parametrize("valid", [0, abi.FATTR_CTIME, abi.FATTR_FH | abi.FATTR_LOCKOWNER])
@pytest.mark.parametrize(("owner", "left"), [(CALLER.uid, 0o755), (CALLER.uid + 1, 0o6755)])
def test_setattr_of_nothing_takes_the_callers_own_privileges_away(  # noqa: PLR0917
    kernel: Kernel, fs: PassthroughFs, source: Path, valid: int, owner: int, left: int
) -> None:
    (source / "file").touch()
    os.chown(source / "file", owner, 0)
    (source / "file").chmod(0o6755)

    body = wire.SETATTR_IN.pack(valid, *(0,) * 12)
    assert kernel.ask(Opcode.SETATTR, body, number_of(fs, b"file")).error == 0

    assert stat.S_IMODE((source / "file").stat().st_mode) == left


@pytest.mark.parametrize(("flags", "left"), [(os.O_WRONLY, 0o755), (os.O_RDONLY, 0o6755)])
def test_setattr_of_nothing_takes_privileges_away_from_what_is_open_for_writing(
    kernel: Kernel,
    source: Path,
    opened: Callable[[bytes, int], tuple[int, int]],
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
    kernel.ask(Opcode.RELEASE, wire.RELEASE_IN.pack(handle, 0, 0, 0))


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
    opened: Callable[[bytes, int], tuple[int, int]],
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
    kernel.ask(Opcode.RELEASE, wire.RELEASE_IN.pack(handle, 0, 0, 0))
    kernel.ask(Opcode.RELEASE, wire.RELEASE_IN.pack(handle + 1, 0, 0, 0))


@pytest.mark.parametrize("mode", [0o6755, 0o755])
@pytest.mark.parametrize("opcode", [Opcode.WRITE, Opcode.FALLOCATE, Opcode.COPY_FILE_RANGE])
def test_the_kernel_forgets_the_mode_of_what_has_lost_its_privileges(
    kernel: Kernel,
    source: Path,
    opened: Callable[[bytes], tuple[int, int]],
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
    kernel.channel.notifications.clear()
    kernel.session.fs.tell_lost_privileges(kernel.session.forget_attributes)

    assert kernel.ask(opcode, body, number).error == 0

    forgotten = (Notification.INVAL_INODE, wire.NOTIFY_INVAL_INODE_OUT.pack(number, -1, 0))
    assert kernel.channel.notifications == ([forgotten] if mode == 0o6755 else [])
    kernel.ask(Opcode.RELEASE, wire.RELEASE_IN.pack(handle, 0, 0, 0))


def test_what_is_created_belongs_to_the_caller(kernel: Kernel, source: Path) -> None:
    for opcode, name, body in (
        (Opcode.MKNOD, "fifo", wire.MKNOD_IN.pack(stat.S_IFIFO | 0o640, 0, 0o777)),
        (Opcode.MKDIR, "dir", wire.MKDIR_IN.pack(0o1750, 0o777)),
        (Opcode.CREATE, "file", wire.CREATE_IN.pack(os.O_RDWR, 0o100644, 0o777, 0)),
    ):
        reply = kernel.ask(opcode, body + text(name.encode()))
        assert reply.error == 0, name
        found = os.lstat(source / name)
        assert (found.st_uid, found.st_gid) == CALLER
        assert entry(reply.body)["mode"] == found.st_mode
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
    handle = kernel.session.fs.files._numbers.__next__() - 1
    assert kernel.ask(Opcode.RELEASE, wire.RELEASE_IN.pack(handle, 0, 0, 0)).error == 0


def test_names_come_and_go(kernel: Kernel, fs: PassthroughFs, source: Path) -> None:
    (source / "file").write_text("x")
    (source / "dir").mkdir()
    number, directory = number_of(fs, b"file"), number_of(fs, b"dir")

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


def test_reading_and_writing(
    kernel: Kernel, source: Path, opened: Callable[[bytes], tuple[int, int]]
) -> None:
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


@pytest.mark.parametrize(
    ("opcode", "body", "is_said"),
    [
        (Opcode.FSYNC, wire.FSYNC_IN.pack(0, 0), True),
        (Opcode.FSYNCDIR, wire.FSYNC_IN.pack(0, 0), True),
        (Opcode.SYNCFS, bytes(wire.SYNCFS_IN.size), True),
        (Opcode.FALLOCATE, wire.FALLOCATE_IN.pack(0, 0, 10, 0), True),
        (Opcode.COPY_FILE_RANGE_64, wire.COPY_FILE_RANGE_IN.pack(0, 0, 2, 0, 0, 1 << 21, 0), True),
        (Opcode.COPY_FILE_RANGE_64, wire.COPY_FILE_RANGE_IN.pack(0, 0, 2, 0, 0, 1 << 20, 0), False),
        (Opcode.WRITE, wire.WRITE_IN.pack(0, 0, 0, 0, 0, 0), False),
    ],
)
def test_who_is_about_to_wait_for_the_disk_says_so_first(
    kernel: Kernel, opcode: Opcode, body: bytes, *, is_said: bool
) -> None:
    said: list[str] = []
    kernel.session.about_to_block = lambda: said.append("about to block")

    kernel.ask(opcode, body)

    assert bool(said) is is_said


@pytest.mark.parametrize(("flag", "mode"), [(abi.WRITE_KILL_SUIDGID, 0o755), (0, 0o6755)])
def test_a_write_takes_privileges_away_if_told(
    kernel: Kernel, source: Path, opened: Callable[[bytes], tuple[int, int]], flag: int, mode: int
) -> None:
    (source / "program").touch()
    (source / "program").chmod(0o6755)
    number, handle = opened(b"program")

    assert (
        kernel.ask(Opcode.WRITE, wire.WRITE_IN.pack(handle, 0, 1, flag, 0, 0) + b"x", number).error
        == 0
    )

    assert stat.S_IMODE((source / "program").stat().st_mode) == mode
    kernel.ask(Opcode.RELEASE, wire.RELEASE_IN.pack(handle, 0, 0, 0))


@pytest.mark.parametrize(("flag", "mode"), [(abi.FATTR_KILL_SUIDGID, 0o755), (0, 0o6755)])
def test_truncating_takes_privileges_away_if_told(
    kernel: Kernel, fs: PassthroughFs, source: Path, flag: int, mode: int
) -> None:
    (source / "program").write_bytes(b"1234")
    (source / "program").chmod(0o6755)
    body = wire.SETATTR_IN.pack(abi.FATTR_SIZE | flag, 0, 2, *[0] * 10)

    assert kernel.ask(Opcode.SETATTR, body, number_of(fs, b"program")).error == 0

    assert stat.S_IMODE((source / "program").stat().st_mode) == mode


@pytest.mark.parametrize(("flag", "mode"), [(abi.OPEN_KILL_SUIDGID, 0o755), (0, 0o6755)])
def test_opening_to_truncate_takes_privileges_away_if_told(
    kernel: Kernel, fs: PassthroughFs, source: Path, flag: int, mode: int
) -> None:
    (source / "program").write_bytes(b"1234")
    (source / "program").chmod(0o6755)
    body = wire.OPEN_IN.pack(os.O_WRONLY | os.O_TRUNC, flag)

    reply = kernel.ask(Opcode.OPEN, body, number_of(fs, b"program"))

    assert stat.S_IMODE((source / "program").stat().st_mode) == mode
    kernel.ask(Opcode.RELEASE, wire.RELEASE_IN.pack(wire.OPEN_OUT.unpack(reply.body)[0], 0, 0, 0))


def test_extended_attributes(kernel: Kernel, fs: PassthroughFs, source: Path) -> None:
    (source / "file").touch()
    number = number_of(fs, b"file")

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


def test_statfs_and_access(kernel: Kernel, fs: PassthroughFs, source: Path) -> None:
    (source / "file").touch(0o640)
    host = os.statvfs(source)

    blocks, *_, namelen, frsize = wire.STATFS_OUT.unpack(kernel.ask(Opcode.STATFS).body)

    assert (blocks, namelen, frsize) == (host.f_blocks, host.f_namemax, host.f_frsize)
    number = number_of(fs, b"file")
    assert kernel.ask(Opcode.ACCESS, wire.ACCESS_IN.pack(os.R_OK), number).error == errno.EACCES
    assert kernel.ask(Opcode.ACCESS, wire.ACCESS_IN.pack(os.F_OK), number).error == 0


@pytest.mark.parametrize("plus", [False, True])
def test_a_listing_in_any_number_of_parts(
    kernel: Kernel, fs: PassthroughFs, source: Path, plus: bool
) -> None:
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
        assert nodeid == (ino if plus else 0)
    assert (found[b"."][0], found[b"."][3]) == (0, 4)
    assert len(fs.inodes) == (101 if plus else 1)
    # Those that did not fit were given back at once, and the others count one each.
    for number in {row[0] for row in found.values()} - {0}:
        assert fs.inodes[number].lookups == 1
        fs.forget(number, 1)
    fs.delivered.clear()  # type: ignore[attr-defined]
    assert kernel.ask(Opcode.FSYNCDIR, wire.FSYNC_IN.pack(handle, 0)).error == 0
    assert kernel.ask(Opcode.RELEASEDIR, wire.RELEASE_IN.pack(handle, 0, 0, 0)).error == 0
    assert kernel.ask(opcode, READ.pack(handle, 0, 1000, 0, 0, 0)).error == errno.EBADF


@pytest.mark.parametrize("more", [0, abi.LK_FLOCK])
def test_without_a_thread_for_others_there_is_no_waiting_for_a_lock(
    kernel: Kernel, source: Path, opened: Callable[[bytes], tuple[int, int]], more: int
) -> None:
    (source / "file").touch()
    kernel.session.passes_through = False
    number, handle = opened(b"file")
    kernel.session.may_wait = lambda _request: False
    lock, unlock = (
        wire.LK_IN.pack(handle, 7, 0, 9, kind, 5, more) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK)
    )

    assert kernel.ask(Opcode.SETLKW, lock, number).error == errno.ENOLCK
    for _ in range(2):  # pages of the file, which a READ may hold, would have to go first
        assert kernel.ask(Opcode.SETLK, lock, number).error == errno.ENOLCK
    with (source / "file").open("r+b") as file:
        (fcntl.flock if more else fcntl.lockf)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert kernel.channel.notifications == []

    kernel.session.may_wait = lambda _request: True
    assert kernel.ask(Opcode.SETLKW, lock, number).error == 0
    assert [code for code, _ in kernel.channel.notifications] == [Notification.INVAL_INODE]
    kernel.session.may_wait = lambda _request: False
    assert kernel.ask(Opcode.SETLKW, unlock, number).error == 0  # as LOCK_UN of flock(2) comes
    assert kernel.ask(Opcode.SETLK, lock, number).error == 0
    kernel.ask(Opcode.RELEASE, wire.RELEASE_IN.pack(handle, 0, 0, 0))


def test_of_a_file_that_passes_through_no_pages_are_waited_for(
    kernel: Kernel, source: Path, opened: Callable[[bytes], tuple[int, int]]
) -> None:
    (source / "file").touch()
    number, handle = opened(b"file")
    kernel.session.may_wait = lambda _request: False

    lock = wire.LK_IN.pack(handle, 7, 0, 9, fcntl.F_WRLCK, 5, 0)
    assert kernel.ask(Opcode.SETLK, lock, number).error == 0
    kernel.ask(Opcode.RELEASE, wire.RELEASE_IN.pack(handle, 0, 0, 0))


def test_an_inode_that_is_gone_is_estale(kernel: Kernel) -> None:
    """Which makes the kernel look the name up again."""
    on_inodes = set(BODIES) - WITHOUT_ANSWER - WITHOUT_OPERATION
    by_handle = {"READ", "WRITE", "FLUSH", "FSYNC", "RELEASE", "READDIR", "READDIRPLUS"}
    by_handle |= {"RELEASEDIR", "FSYNCDIR", "GETLK", "SETLK", "SETLKW", "IOCTL", "FALLOCATE"}
    by_handle |= {"LSEEK", "COPY_FILE_RANGE", "COPY_FILE_RANGE_64"}

    errors = {
        name: kernel.ask(Opcode[name], BODIES[name], nodeid=4_711).error
        for name in on_inodes - by_handle
    }

    assert errors == dict.fromkeys(on_inodes - by_handle, errno.ESTALE)
