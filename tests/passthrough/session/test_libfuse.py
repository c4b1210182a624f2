"""The adapter between pyfuse3 and PassthroughFs, called as pyfuse3 calls it, without a mount."""

import errno
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
from pyfuse3 import EntryAttributes, FUSEError, InodeT

from passthrough.core.filesystem import PassthroughFs
from passthrough.identity.attributes import OMIT, Attributes, Changes, Entry
from passthrough.identity.idmap import ContainerId, ContainerIds
from passthrough.options.cache_policy import Cache
from passthrough.session import libfuse
from passthrough.session.libfuse import LibfuseOperations
from tests.support.tools.direct import CALLER
from tests.support.tools.options import effective
from tests.support.tools.pyfuse3_requests import CONTEXT, Recording, operations, request

FIELDS = ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")

# Every handler, with arguments as the kernel would send them.
REQUESTS: dict[str, tuple[Any, ...]] = {
    "lookup": (1, b"name", CONTEXT),
    "getattr": (1, CONTEXT),
    "setattr": (1, EntryAttributes(), pyfuse3.SetattrFields(), None, CONTEXT),
    "readlink": (1, CONTEXT),
    "mknod": (1, b"name", stat.S_IFREG | 0o600, 0, CONTEXT),
    "mkdir": (1, b"name", 0o700, CONTEXT),
    "unlink": (1, b"name", CONTEXT),
    "rmdir": (1, b"name", CONTEXT),
    "symlink": (1, b"name", b"target", CONTEXT),
    "rename": (1, b"name", 1, b"new", 0, CONTEXT),
    "link": (1, 1, b"name", CONTEXT),
    "open": (1, os.O_RDONLY, CONTEXT),
    "read": (1, 0, 10),
    "write": (1, 0, b"x"),
    "flush": (1,),
    "release": (1,),
    "fsync": (1, False),
    "opendir": (1, CONTEXT),
    "readdir": (1, 0, None),
    "releasedir": (1,),
    "fsyncdir": (1, True),
    "statfs": (CONTEXT,),
    "setxattr": (1, b"user.a", b"", CONTEXT),
    "getxattr": (1, b"user.a", CONTEXT),
    "listxattr": (1, CONTEXT),
    "removexattr": (1, b"user.a", CONTEXT),
    "access": (1, os.R_OK, CONTEXT),
    "create": (1, b"name", 0o600, os.O_RDWR, CONTEXT),
}


class Failing:
    """A file system whose every operation raises the same."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.cache = Cache(effective())

    def __getattr__(self, name: str) -> Callable[..., object]:
        def operation(*_: object, **__: object) -> object:
            raise self.error

        return operation


@pytest.fixture
def attributes(tmp_path: Path) -> os.stat_result:
    return tmp_path.stat()


def test_the_table_has_every_handler_that_pyfuse3_calls() -> None:
    """All that it can deliver are answered; `poll` and `ioctl` would make no sense on files."""
    base = {name for name in vars(pyfuse3.Operations) if not name.startswith("_")}
    own = {name for name in vars(LibfuseOperations) if not name.startswith("_")}
    without_reply = {"init", "forget"}
    settings = {"supports_dot_lookup", "enable_writeback_cache", "enable_acl"}

    assert own - without_reply - settings == set(REQUESTS)
    assert base - own <= {"stacktrace", "poll", "ioctl"}


@pytest.mark.parametrize("name", REQUESTS)
async def test_an_oserror_becomes_the_replys_errno(name: str) -> None:
    with pytest.raises(FUSEError) as failed:
        await request(Failing(OSError(errno.ENOSPC, "full")), name, *REQUESTS[name])

    assert failed.value.errno == errno.ENOSPC


async def test_a_number_that_no_system_call_takes_is_einval() -> None:
    class Overflowing(Recording):
        def read(self, _handle: int, offset: int, size: int) -> bytes:
            return os.pread(0, size, offset)

    with pytest.raises(FUSEError) as failed:
        await request(Overflowing(), "read", 1, 1 << 63, 10)

    assert failed.value.errno == errno.EINVAL


async def test_an_oserror_without_errno_is_eio() -> None:
    with pytest.raises(FUSEError) as failed:
        await request(Failing(OSError("no number")), "lookup", *REQUESTS["lookup"])

    assert failed.value.errno == errno.EIO


@pytest.mark.logs("failed by a mistake of this program")
@pytest.mark.parametrize("name", REQUESTS)
async def test_a_mistake_becomes_eio_with_a_traceback_in_the_log(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    mistake = ZeroDivisionError("a mistake")

    with pytest.raises(FUSEError) as failed:
        await request(Failing(mistake), name, *REQUESTS[name])

    assert failed.value.errno == errno.EIO
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(f"{name} failed")
    assert record.exc_info
    assert record.exc_info[1] is mistake


async def test_what_ends_the_program_is_let_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        await request(
            Failing(cast("Exception", KeyboardInterrupt())), "lookup", *REQUESTS["lookup"]
        )


@pytest.mark.logs("forget of inode 7 failed")
async def test_forget_goes_on_after_a_failure_and_never_raises() -> None:
    forgotten: list[tuple[int, int]] = []

    def forget(number: int, count: int) -> None:
        if number == 7:
            raise OSError(errno.EIO, "bad")
        forgotten.append((number, count))

    await operations(SimpleNamespace(forget=forget)).forget(
        [(InodeT(5), 1), (InodeT(7), 1), (InodeT(9), 3)]
    )

    assert forgotten == [(5, 1), (9, 3)]


def test_init_says_that_requests_are_answered() -> None:
    said: list[str] = []

    LibfuseOperations(cast("PassthroughFs", None), lambda: said.append("serving")).init()

    assert said == ["serving"]


def test_the_session_asks_for_no_feature_that_the_operations_do_not_have() -> None:
    adapter = operations(None)

    assert not adapter.supports_dot_lookup
    assert not adapter.enable_writeback_cache
    assert not adapter.enable_acl


PASSED_ON: dict[str, tuple[Any, ...]] = {
    "unlink": (1, b"name"),
    "rmdir": (1, b"name"),
    "rename": (1, b"name", 1, b"new", 0, CALLER),
    "read": (1, 0, 10),
    "write": (1, 0, b"x"),
    "flush": (1,),
    "release": (1,),
    "fsync": (1, False),
    "releasedir": (1,),
    "fsyncdir": (1, True),
    "setxattr": (1, b"user.a", b""),
    "getxattr": (1, b"user.a"),
    "removexattr": (1, b"user.a"),
    "readlink": (1,),
    "access": (1, os.R_OK, CALLER),
    "opendir": (1,),
}


@pytest.mark.parametrize(("name", "expected"), PASSED_ON.items())
async def test_a_request_is_passed_on(name: str, expected: tuple[Any, ...]) -> None:
    fs = Recording(answer=b"text" if name == "readlink" else 17)

    answer = await request(fs, name, *REQUESTS[name])

    assert fs.calls == [(name, *expected)]
    assert answer in {fs.answer, None}


CREATING: dict[str, tuple[Any, ...]] = {
    "mknod": (1, b"name", stat.S_IFREG | 0o600, 0, CALLER),
    "mkdir": (1, b"name", 0o700, CALLER),
    "symlink": (1, b"name", b"target", CALLER),
    "create": (1, b"name", 0o600, os.O_RDWR, CALLER),
}


@pytest.mark.parametrize(("name", "expected"), CREATING.items())
async def test_creation_is_passed_on_with_the_caller(
    name: str, expected: tuple[Any, ...], attributes: os.stat_result
) -> None:
    entry = Entry(5, attributes, (1.0, 2.0))
    fs = Recording(answer=(entry, 17) if name == "create" else entry)

    await request(fs, name, *REQUESTS[name])

    assert fs.calls == [(name, *expected)]
    assert isinstance(fs.calls[0][-1], ContainerIds)


@pytest.mark.parametrize("name", ["mkdir", "create"])
async def test_the_kind_of_file_is_no_part_of_the_mode(
    name: str, attributes: os.stat_result
) -> None:
    entry = Entry(5, attributes, (1.0, 2.0))
    fs = Recording(answer=(entry, 17) if name == "create" else entry)
    arguments = list(REQUESTS[name])
    arguments[2] |= stat.S_IFDIR | 0o1000

    await request(fs, name, *arguments)

    assert fs.calls[0][3] == stat.S_IMODE(arguments[2])


def changed(**values: int) -> EntryAttributes:
    attributes = EntryAttributes()
    for field, value in values.items():
        setattr(attributes, field, value)
    return attributes


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((), Changes()),
        (("mode",), Changes(mode=0o4640)),
        (("uid",), Changes(uid=ContainerId(7))),
        (("gid",), Changes(gid=ContainerId(8))),
        (("size",), Changes(size=9)),
        (("atime",), Changes(atime=(1, 500_000_000))),
        (("mtime",), Changes(mtime=(-2, 999_999_999))),
        (
            FIELDS,
            Changes(0o4640, ContainerId(7), ContainerId(8), 9, (1, 500_000_000), (-2, 999_999_999)),
        ),
    ],
)
async def test_setattr_carries_what_is_to_change_and_nothing_else(
    fields: tuple[str, ...], expected: Changes, attributes: os.stat_result
) -> None:
    """Times before 1970 count down to their second, and up from there."""
    fs = Recording(answer=Attributes(3, attributes, 1.0))
    given = changed(
        st_mode=stat.S_IFREG | 0o4640,
        st_uid=7,
        st_gid=8,
        st_size=9,
        st_atime_ns=1_500_000_000,
        st_mtime_ns=-1_000_000_001,
    )
    wanted = SimpleNamespace(**{f"update_{field}": field in fields for field in FIELDS})

    await request(fs, "setattr", 3, given, wanted, 11, CONTEXT)

    assert fs.calls[-1][:4] == ("setattr", 3, expected, 11)
    assert Changes().atime == OMIT


def test_a_descriptor_that_is_not_open_is_an_oserror() -> None:
    """Whoever starts the session reports it in a sentence: libfuse's own error has no number."""
    fd = os.open("/dev/null", os.O_RDWR)
    os.close(fd)

    with pytest.raises(OSError, match=f"descriptor {fd}") as failed:
        libfuse.serve(cast("PassthroughFs", Recording()), fd, lambda: None, SimpleNamespace())

    assert failed.value.errno == errno.EBADF
