"""session/libfuse.py: each handler of pyfuse3, called as pyfuse3 calls it, without a mount."""

import errno
import logging
import os
import stat
import struct
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
from pyfuse3 import EntryAttributes, FUSEError

from passthrough.core.face import Core
from passthrough.session import libfuse
from passthrough.session.abi import Opcode
from passthrough.session.kernel import Served
from passthrough.session.libfuse import LibfuseOperations
from tests.support.tools import abi, wire
from tests.support.tools.options import effective
from tests.support.tools.pyfuse3_requests import (
    CONTEXT,
    FH,
    OPEN_FLAGS,
    Recording,
    Sent,
    finished,
    operations,
    request,
)

FIELDS = ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")
NODEID = 2 << 32 | 3
PARENT = 4 << 32 | 5
UNCHANGED = SimpleNamespace(**{f"update_{field}": False for field in FIELDS})
CREATED = stat.S_IFREG | 0o4640

# Every handler, with arguments as the kernel would send them.
REQUESTS: dict[str, tuple[Any, ...]] = {
    "lookup": (NODEID, b"name", CONTEXT),
    "getattr": (NODEID, CONTEXT),
    "setattr": (NODEID, EntryAttributes(), UNCHANGED, None, CONTEXT),
    "readlink": (NODEID, CONTEXT),
    "mknod": (NODEID, b"name", CREATED, 0x105, CONTEXT),
    "mkdir": (NODEID, b"name", 0o700, CONTEXT),
    "unlink": (NODEID, b"name", CONTEXT),
    "rmdir": (NODEID, b"name", CONTEXT),
    "symlink": (NODEID, b"name", b"target", CONTEXT),
    "rename": (NODEID, b"name", PARENT, b"new", 2, CONTEXT),
    "link": (NODEID, PARENT, b"name", CONTEXT),
    "open": (NODEID, os.O_RDWR | os.O_TRUNC, CONTEXT),
    "read": (FH, 1 << 40, 10),
    "write": (FH, 1 << 40, b"content"),
    "flush": (FH,),
    "release": (FH,),
    "fsync": (FH, False),
    "opendir": (NODEID, CONTEXT),
    "readdir": (FH, 1 << 62, pyfuse3.ReaddirToken()),
    "releasedir": (FH,),
    "fsyncdir": (FH, True),
    "statfs": (CONTEXT,),
    "setxattr": (NODEID, b"user.a", b"\0value", CONTEXT),
    "getxattr": (NODEID, b"user.a", CONTEXT),
    "listxattr": (NODEID, CONTEXT),
    "removexattr": (NODEID, b"user.a", CONTEXT),
    "access": (NODEID, os.R_OK, CONTEXT),
    "create": (NODEID, b"name", CREATED, os.O_RDWR, CONTEXT),
}


def by_caller(opcode: int, body: bytes, nodeid: int = NODEID) -> Sent:
    return Sent(opcode, nodeid, CONTEXT.uid, CONTEXT.gid, CONTEXT.pid, body)


def of_open(opcode: int, body: bytes) -> Sent:
    return Sent(opcode, 0, 0, 0, 0, body)


ROOM = wire.GETXATTR_IN.pack(65536)
SENT = {
    "lookup": by_caller(Opcode.LOOKUP, b"name\0"),
    "getattr": by_caller(Opcode.GETATTR, wire.GETATTR_IN.pack(0, 0)),
    "setattr": by_caller(Opcode.SETATTR, wire.SETATTR_IN.pack(*(0,) * 13)),
    "readlink": by_caller(Opcode.READLINK, b""),
    "mknod": by_caller(Opcode.MKNOD, wire.MKNOD_IN.pack(CREATED, 0x105, 0) + b"name\0"),
    "mkdir": by_caller(Opcode.MKDIR, wire.MKDIR_IN.pack(0o700, 0) + b"name\0"),
    "unlink": by_caller(Opcode.UNLINK, b"name\0"),
    "rmdir": by_caller(Opcode.RMDIR, b"name\0"),
    "symlink": by_caller(Opcode.SYMLINK, b"name\0target\0"),
    "rename": by_caller(Opcode.RENAME2, wire.RENAME2_IN.pack(PARENT, 2) + b"name\0new\0"),
    "link": by_caller(Opcode.LINK, wire.LINK_IN.pack(NODEID) + b"name\0", PARENT),
    "open": by_caller(Opcode.OPEN, wire.OPEN_IN.pack(os.O_RDWR | os.O_TRUNC, 0)),
    "read": of_open(Opcode.READ, wire.READ_IN.pack(FH, 1 << 40, 10, 0, 0, OPEN_FLAGS)),
    "write": of_open(
        Opcode.WRITE, wire.WRITE_IN.pack(FH, 1 << 40, 7, 0, 0, OPEN_FLAGS) + b"content"
    ),
    "flush": of_open(Opcode.FLUSH, wire.FLUSH_IN.pack(FH, 0)),
    "release": of_open(Opcode.RELEASE, wire.RELEASE_IN.pack(FH, 0, 0, 0)),
    "fsync": of_open(Opcode.FSYNC, wire.FSYNC_IN.pack(FH, 0)),
    "opendir": by_caller(Opcode.OPENDIR, wire.OPEN_IN.pack(0, 0)),
    "readdir": of_open(Opcode.READDIRPLUS, wire.READ_IN.pack(FH, 1 << 62, 0, 0, 0, 0)),
    "releasedir": of_open(Opcode.RELEASEDIR, wire.RELEASE_IN.pack(FH, 0, 0, 0)),
    "fsyncdir": of_open(Opcode.FSYNCDIR, wire.FSYNC_IN.pack(FH, abi.FSYNC_FDATASYNC)),
    "statfs": by_caller(Opcode.STATFS, b"", abi.ROOT_ID),
    "setxattr": by_caller(
        Opcode.SETXATTR, wire.SETXATTR_IN.pack(6, 0, 0) + b"user.a\0" + b"\0value"
    ),
    "getxattr": by_caller(Opcode.GETXATTR, ROOM + b"user.a\0"),
    "listxattr": by_caller(Opcode.LISTXATTR, ROOM),
    "removexattr": by_caller(Opcode.REMOVEXATTR, b"user.a\0"),
    "access": by_caller(Opcode.ACCESS, wire.ACCESS_IN.pack(os.R_OK)),
    "create": by_caller(Opcode.CREATE, wire.CREATE_IN.pack(os.O_RDWR, CREATED, 0, 0) + b"name\0"),
}


def test_the_table_has_every_handler_that_pyfuse3_calls() -> None:
    """All that it can deliver are answered; `poll` and `ioctl` would make no sense on files."""
    base = {name for name in vars(pyfuse3.Operations) if not name.startswith("_")}
    own = {name for name in vars(LibfuseOperations) if not name.startswith("_")}
    without_reply = {"init", "forget"}
    settings = {"supports_dot_lookup", "enable_writeback_cache", "enable_acl"}

    assert own - without_reply - settings == set(REQUESTS) == set(SENT)
    assert base - own <= {"stacktrace", "poll", "ioctl"}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_has_the_bytes_that_the_kernel_would_send(name: str) -> None:
    core = Recording()

    request(core, name, *REQUESTS[name])

    assert core.sent == [SENT[name]]


@pytest.mark.parametrize("name", REQUESTS)
def test_the_errno_of_a_reply_is_passed_on(name: str) -> None:
    with pytest.raises(FUSEError) as failed:
        request(Recording(errno.ENOSPC), name, *REQUESTS[name])

    assert failed.value.errno == errno.ENOSPC


@pytest.mark.parametrize("offset", [-1, 1 << 64])
def test_a_number_that_has_no_room_in_a_request_is_einval(offset: int) -> None:
    core = Recording()

    with pytest.raises(FUSEError) as failed:
        request(core, "read", FH, offset, 10)

    assert failed.value.errno == errno.EINVAL
    assert core.sent == []


@pytest.mark.logs("failed by a mistake of this program")
@pytest.mark.parametrize("name", REQUESTS)
def test_a_mistake_becomes_eio_with_a_traceback_in_the_log(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    mistake = ZeroDivisionError("a mistake")

    with pytest.raises(FUSEError) as failed:
        request(Recording(mistake), name, *REQUESTS[name])

    assert failed.value.errno == errno.EIO
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(f"{name} failed")
    assert record.exc_info
    assert record.exc_info[1] is mistake


def test_what_ends_the_program_is_let_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        request(Recording(KeyboardInterrupt()), "lookup", *REQUESTS["lookup"])


def test_forget_names_each_inode_with_its_count() -> None:
    core = Recording()

    request(core, "forget", [(5, 1), (1 << 63, 3)])

    body = wire.BATCH_FORGET_IN.pack(2) + struct.pack("=4Q", 5, 1, 1 << 63, 3)
    assert core.sent == [of_open(Opcode.BATCH_FORGET, body)]
    assert core.trimmed == 1


@pytest.mark.logs("forget of 2 inodes failed")
def test_forget_never_raises() -> None:
    request(Recording(ZeroDivisionError()), "forget", [(5, 1), (7, 1)])


def test_init_says_that_requests_are_answered() -> None:
    said: list[str] = []

    LibfuseOperations(cast("Core", Recording()), lambda: said.append("serving")).init()

    assert said == ["serving"]


def test_the_session_asks_for_no_feature_that_the_operations_do_not_have() -> None:
    adapter = operations(Recording())

    assert not adapter.supports_dot_lookup
    assert not adapter.enable_writeback_cache
    assert not adapter.enable_acl


# In the order of wire.SETATTR_IN: the bits, fh, size, lock owner, seconds, nanoseconds, mode, ids.
@pytest.mark.parametrize(
    ("fields", "fh", "expected"),
    [
        ((), FH, (abi.FATTR_FH, FH, *(0,) * 11)),
        (("mode",), None, (abi.FATTR_MODE, *(0,) * 9, CREATED, 0, 0)),
        (("uid",), None, (abi.FATTR_UID, *(0,) * 10, 7, 0)),
        (("gid",), None, (abi.FATTR_GID, *(0,) * 11, 8)),
        (("size",), None, (abi.FATTR_SIZE, 0, 9, *(0,) * 10)),
        (("atime",), None, (abi.FATTR_ATIME, *(0,) * 3, 1, *(0,) * 2, 500_000_000, *(0,) * 5)),
        (("mtime",), None, (abi.FATTR_MTIME, *(0,) * 4, -2, *(0,) * 2, 999_999_999, *(0,) * 4)),
        (
            FIELDS,
            None,
            (0x3F, 0, 9, 0, 1, -2, 0, 500_000_000, 999_999_999, 0, CREATED, 7, 8),
        ),
    ],
)
def test_setattr_carries_what_is_to_change_and_nothing_else(
    fields: tuple[str, ...], fh: int | None, expected: tuple[int, ...]
) -> None:
    """Times before 1970 count down to their second, and up from there."""
    core = Recording()
    given = EntryAttributes()
    given.st_mode, given.st_uid, given.st_gid = cast("Any", CREATED), 7, 8
    given.st_size, given.st_atime_ns, given.st_mtime_ns = 9, 1_500_000_000, -1_000_000_001
    wanted = SimpleNamespace(**{f"update_{field}": field in fields for field in FIELDS})

    request(core, "setattr", NODEID, given, wanted, fh, CONTEXT)

    assert wire.SETATTR_IN.unpack(core.sent[0].body) == expected


def test_a_descriptor_that_is_not_open_is_an_oserror() -> None:
    """The worker reports the error in a sentence: libfuse's own error has no number."""
    fd = os.open("/dev/null", os.O_RDWR)
    os.close(fd)
    served = cast("Served", SimpleNamespace(core=Recording(), config=effective()))

    with pytest.raises(OSError, match=f"descriptor {fd}") as failed:
        libfuse.serve(served, fd, lambda: None, SimpleNamespace())

    assert failed.value.errno == errno.EBADF


def test_a_handler_that_would_wait_is_found() -> None:
    """All other tests rely on it."""

    class Pause:
        def __await__(self) -> Any:
            yield

    async def handler() -> None:
        await Pause()

    with pytest.raises(AssertionError, match="a handler waits"):
        finished(handler())
