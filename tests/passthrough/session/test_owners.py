"""Owners as bytes, in volumes that map or squash ids: of new files, in replies, by chown(2)."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.options.choices import SessionKind, Squash
from passthrough.options.effective import Effective
from passthrough.options.values import Owner, Range
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import CALLER, Connect, Kernel, attributes, entry, text
from tests.support.tools import abi, wire
from tests.support.tools.bodies import BODIES, READ
from tests.support.tools.files import owner
from tests.support.tools.options import effective

UNMAPPED, UNMAPPED_GROUP = 4_294_967_295, 4_294_967_294
UID, GID = 100_000, 200_000
"""The ids of the host that begin the ranges."""
CALLERS = UID + CALLER.uid, GID + CALLER.gid
"""The ids of the host that the caller acts as."""
CREATING = ("MKNOD", "MKDIR", "SYMLINK", "CREATE", "TMPFILE")


def mapping(**more: object) -> Effective:
    """Return options that map the ids from 0 to 49,999."""
    ranges = {"map_uid": (Range(0, UID, 50_000),), "map_gid": (Range(0, GID, 50_000),)}
    return effective(session=SessionKind.KERNEL, **ranges, **more)


@pytest.fixture
def mapped(connect: Connect, source: Path) -> Kernel:
    """A volume that maps ids; its top directory belongs to root of the container."""
    os.chown(source, UID, GID)
    return connect(mapping())


def made(source: Path, name: str, uid: int, gid: int) -> Path:
    path = source / name
    path.touch()
    os.chown(path, uid, gid)
    return path


def setattr_(kernel: Kernel, nodeid: int, valid: int, **fields: int) -> tuple[int, bytes]:
    """Send SETATTR; return the errno and the body of the reply."""
    body = wire.SETATTR_IN.pack(
        *(valid, 0, fields.get("size", 0), 0, 0, fields.get("mtime", 0), 0, 0, 0, 0),
        *(fields.get("mode", 0), fields.get("uid", 0), fields.get("gid", 0)),
    )
    reply = kernel.ask(Opcode.SETATTR, body, nodeid)
    return reply.error, reply.body


@pytest.mark.parametrize("opcode", CREATING[:-1])
def test_a_new_file_belongs_to_the_callers_counterpart(
    mapped: Kernel, source: Path, opcode: str
) -> None:
    reply = mapped.ask(Opcode[opcode], BODIES[opcode])

    assert reply.error == 0
    assert owner(source / "name") == CALLERS
    assert (entry(reply.body)["uid"], entry(reply.body)["gid"]) == CALLER


@pytest.mark.logs(f"id {CALLER.gid} is in no range of map_gid, so nothing is created for it")
def test_a_caller_without_a_counterpart_creates_no_file_and_is_logged_once(
    connect: Connect, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = connect(effective(session=SessionKind.KERNEL, map_gid=(Range(0, 0, 1000),)))

    for opcode in CREATING:
        assert kernel.ask(Opcode[opcode], BODIES[opcode]).error == errno.EPERM
    assert os.listdir(source) == []
    assert len(caplog.records) == 1


def test_no_file_is_created_in_a_directory_of_an_unmapped_owner(
    mapped: Kernel, source: Path
) -> None:
    os.chown(source, 5, GID)

    for opcode in CREATING:
        assert mapped.ask(Opcode[opcode], BODIES[opcode]).error == errno.EPERM, opcode
    assert os.listdir(source) == []


def owners_shown(kernel: Kernel, name: bytes) -> set[tuple[int, int]]:
    """Return the owners of a file in the replies that show one."""
    nodeid = kernel.lookup(name)
    found = [entry(kernel.ask(Opcode.LOOKUP, text(name)).body)]
    found.append(attributes(kernel.ask(Opcode.GETATTR, BODIES["GETATTR"], nodeid).body))
    statx = wire.STATX_OUT.unpack(kernel.ask(Opcode.STATX, BODIES["STATX"], nodeid).body)
    handle = wire.OPEN_OUT.unpack(kernel.ask(Opcode.OPENDIR, BODIES["OPENDIR"]).body)[0]
    body = kernel.ask(Opcode.READDIRPLUS, READ.pack(handle, 0, 4096, 0, 0, 0)).body
    found.append(next(one for one in plus_entries(body) if one["nodeid"] == nodeid))
    return {statx[7:9], *((one["uid"], one["gid"]) for one in found)}


def plus_entries(body: bytes) -> Iterator[dict[str, int]]:
    """Yield the entries of a reply to READDIRPLUS."""
    position = 0
    while position < len(body):
        yield entry(body[position:])
        position += wire.ENTRY_OUT.size
        length = wire.DIRENT.unpack_from(body, position)[2]
        position += wire.DIRENT.size + -(-length // 8) * 8


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ((UID + 7, GID + 8), (7, 8)),
        ((7, GID + 8), (UNMAPPED, UNMAPPED)),
        ((UID + 7, 8), (7, UNMAPPED_GROUP)),
    ],
)
def test_every_reply_shows_the_owner_by_the_map(
    mapped: Kernel, source: Path, host: tuple[int, int], shown: tuple[int, int]
) -> None:
    made(source, "file", *host)

    assert owners_shown(mapped, b"file") == {shown}


def test_without_a_map_owners_are_those_of_the_host(connect: Connect, source: Path) -> None:
    made(source, "file", 7, 8)

    assert owners_shown(connect(), b"file") == {(7, 8)}


def test_replies_to_changes_show_the_owner_by_the_map(mapped: Kernel, source: Path) -> None:
    made(source, "file", UID + 7, 8)
    nodeid = mapped.lookup(b"file")
    _, body = setattr_(mapped, nodeid, abi.FATTR_MODE, mode=0o640)
    linked = mapped.ask(Opcode.LINK, wire.LINK_IN.pack(nodeid) + text(b"second")).body

    for found in (attributes(body), entry(linked)):
        assert (found["uid"], found["gid"]) == (7, UNMAPPED_GROUP)


def test_chown_maps_the_ids_to_the_host(mapped: Kernel, source: Path) -> None:
    made(source, "file", UID + 7, GID + 8)
    nodeid = mapped.lookup(b"file")

    _, body = setattr_(mapped, nodeid, abi.FATTR_UID, uid=1)
    assert (attributes(body)["uid"], attributes(body)["gid"]) == (1, 8)
    assert owner(source / "file") == (UID + 1, GID + 8)
    assert setattr_(mapped, nodeid, abi.FATTR_GID, gid=2)[0] == 0
    assert owner(source / "file") == (UID + 1, GID + 2)


@pytest.mark.logs("id 70000 is in no range of map_uid")
@pytest.mark.logs("id 70000 is in no range of map_gid")
def test_chown_to_an_id_without_a_counterpart_is_refused(mapped: Kernel, source: Path) -> None:
    made(source, "file", UID + 7, GID + 8)
    nodeid = mapped.lookup(b"file")

    for valid, uid, gid in (
        (abi.FATTR_UID, 70_000, 0),
        (abi.FATTR_GID, 0, 70_000),
        (abi.FATTR_UID | abi.FATTR_GID, 1, 70_000),
    ):
        assert setattr_(mapped, nodeid, valid, uid=uid, gid=gid)[0] == errno.EPERM
    assert owner(source / "file") == (UID + 7, GID + 8)


def test_no_request_changes_attributes_of_a_file_of_an_unmapped_owner(
    mapped: Kernel, source: Path
) -> None:
    path = made(source, "file", 7, GID + 8)
    os.setxattr(path, "user.b", b"1")
    before, nodeid = path.stat(), mapped.lookup(b"file")
    for valid in (
        *(abi.FATTR_MODE, abi.FATTR_UID, abi.FATTR_GID, abi.FATTR_SIZE, abi.FATTR_MTIME),
        abi.FATTR_MODE | abi.FATTR_KILL_SUIDGID,
    ):
        assert setattr_(mapped, nodeid, valid)[0] == errno.EPERM
    for name, body in (
        ("SETXATTR", BODIES["SETXATTR"]),
        ("REMOVEXATTR", text(b"user.b")),
    ):
        assert mapped.ask(Opcode[name], body, nodeid).error == errno.EPERM

    assert path.stat() == before
    assert os.listxattr(path) == ["user.b"]


@pytest.mark.parametrize(
    ("mode", "flags", "error"),
    [
        (0o664, os.O_RDONLY, 0),
        (0o660, os.O_RDONLY, errno.EACCES),
        (0o666, os.O_WRONLY, errno.EACCES),
        (0o666, os.O_RDWR, errno.EACCES),
        (0o666, os.O_RDONLY | os.O_TRUNC, errno.EACCES),
        (0o711, os.O_RDONLY, errno.EACCES),
        (0o711, os.O_RDONLY | 0x20, 0),  # execve(2)
    ],
)
def test_a_file_of_an_unmapped_owner_opens_only_as_its_mode_lets_others_read(
    mapped: Kernel, source: Path, mode: int, flags: int, error: int
) -> None:
    made(source, "file", 7, GID + 8).chmod(mode)

    reply = mapped.ask(Opcode.OPEN, wire.OPEN_IN.pack(flags, 0), mapped.lookup(b"file"))

    assert reply.error == error


def test_a_file_of_an_unmapped_owner_without_an_open_is_read_and_not_written(
    connect: Connect, source: Path
) -> None:
    made(source, "file", 7, GID + 8).write_text("kept")
    kernel = connect(mapping(no_open=True))
    nodeid = kernel.lookup(b"file")

    assert kernel.ask(Opcode.READ, READ.pack(0, 0, 10, 0, 0, 0), nodeid).body == b"kept"
    write = wire.WRITE_IN.pack(0, 0, 1, 0, 0, 0) + b"x"
    assert kernel.ask(Opcode.WRITE, write, nodeid).error == errno.EBADF


def test_only_the_owner_sets_suid_and_sgid_bits(mapped: Kernel, source: Path) -> None:
    theirs, own = made(source, "theirs", UID + 7, GID + 8), made(source, "own", *CALLERS)

    for name, mode, error in ((b"theirs", 0o4700, errno.EPERM), (b"own", 0o6700, 0)):
        nodeid = mapped.lookup(name)
        assert setattr_(mapped, nodeid, abi.FATTR_MODE, mode=mode)[0] == error
    assert stat.S_IMODE(theirs.stat().st_mode) & 0o7000 == 0
    assert stat.S_IMODE(own.stat().st_mode) == 0o6700


def test_a_file_without_a_name_gets_no_sgid_bit_of_its_directorys_group(
    mapped: Kernel, source: Path
) -> None:
    (source / "shared").mkdir()
    os.chown(source / "shared", UID + 7, 0)
    (source / "shared").chmod(0o2770)
    body = wire.CREATE_IN.pack(os.O_RDWR, 0o6750, 0, 0) + text(b"/")

    reply = mapped.ask(Opcode.TMPFILE, body, mapped.lookup(b"shared"))

    assert stat.S_IMODE(entry(reply.body)["mode"]) == 0o4750


@pytest.mark.parametrize(
    ("squash", "expected"), [(Squash.ROOT, (CALLER.uid, CALLER.gid)), (Squash.ALL, (70, 80))]
)
def test_squashed_callers_create_and_chown_as_the_anonymous_ids(
    connect: Connect, source: Path, squash: Squash, expected: tuple[int, int]
) -> None:
    options = effective(session=SessionKind.KERNEL, squash=squash, anon_uid=70, anon_gid=80)
    made(source, "given", expected[0], 9)
    kernel = connect(options)

    assert kernel.ask(Opcode.MKDIR, BODIES["MKDIR"]).error == 0
    valid = abi.FATTR_UID | abi.FATTR_GID
    given = kernel.lookup(b"given")
    assert setattr_(kernel, given, valid, uid=CALLER.uid, gid=CALLER.gid)[0] == 0

    assert owner(source / "name") == owner(source / "given") == expected


@pytest.mark.parametrize("opcode", CREATING[:-1])
def test_with_an_owner_each_reply_shows_it_and_the_host_has_that_of_the_source(
    connect: Connect, source: Path, opcode: str
) -> None:
    os.chown(source, 70, 80)
    shown = Owner(5, 6)
    kernel = connect(effective(session=SessionKind.KERNEL, owner=shown, anon_uid=70, anon_gid=80))

    reply = kernel.ask(Opcode[opcode], BODIES[opcode])

    assert reply.error == 0
    seen = entry(reply.body)
    assert (seen["uid"], seen["gid"]) == shown
    assert owner(source / "name") == (70, 80)


@pytest.mark.parametrize(
    ("uid", "expected"), [(70, 0), (71, errno.EPERM)], ids=["of the source's owner", "of another"]
)
@pytest.mark.parametrize("valid", [abi.FATTR_UID, abi.FATTR_GID, abi.FATTR_UID | abi.FATTR_GID])
def test_with_an_owner_chown_changes_nothing(
    connect: Connect, source: Path, valid: int, uid: int, expected: int
) -> None:
    made(source, "file", uid, 90)
    kernel = connect(
        effective(session=SessionKind.KERNEL, owner=Owner(5, 6), anon_uid=70, anon_gid=80)
    )

    error, _ = setattr_(kernel, kernel.lookup(b"file"), valid, uid=CALLER.uid, gid=CALLER.gid)

    assert error == expected
    assert owner(source / "file") == (uid, 90)
