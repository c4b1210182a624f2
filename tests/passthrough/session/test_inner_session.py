"""The Python session from inside: it goes when the Python path goes.

The tests of the session as bytes are in test_refusals.py, test_request_numbers.py,
test_requests.py and test_session.py.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.linux.errors import os_error
from passthrough.options.cache_policy import Cache
from passthrough.options.choices import CachePolicy, SessionKind
from passthrough.session import abi, wire
from passthrough.session.abi import Init, Notification, Opcode
from passthrough.session.channel import DeviceChannel
from tests.support.fakes.channel import InnerSession
from tests.support.fakes.kernel import EVERYTHING, Kernel, message
from tests.support.tools.bodies import BODIES, WITHOUT_ANSWER, WITHOUT_OPERATION
from tests.support.tools.direct import number_of
from tests.support.tools.options import effective

ASKED = sorted(set(BODIES) - WITHOUT_ANSWER - WITHOUT_OPERATION)
Opened = Callable[..., tuple[int, int]]


@pytest.fixture
def inner(fs: PassthroughFs) -> InnerSession:
    return InnerSession(fs)


@pytest.fixture
def kernel(inner: InnerSession) -> Kernel:
    return Kernel(inner)


@pytest.fixture
def opened(kernel: Kernel, fs: PassthroughFs) -> Opened:
    """Open a name; return its nodeid and its fh."""

    def open_(name: bytes) -> tuple[int, int]:
        nodeid = number_of(fs, name)
        return nodeid, kernel.open(nodeid)

    return open_


class Failing:
    """A file system in which every operation raises *error*."""

    squashes = False

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.config = effective(session=SessionKind.KERNEL)
        self.cache = Cache(self.config)

    def __getattr__(self, name: str) -> Callable[..., object]:
        def operation(*_: object, **__: object) -> object:
            raise self.error

        return operation


@pytest.mark.parametrize("name", ASKED)
def test_an_oserror_becomes_the_errno_of_the_answer(name: str) -> None:
    kernel = Kernel(InnerSession(Failing(OSError(errno.ENOSPC, "full"))))

    assert kernel.ask(Opcode[name], BODIES[name]).error == errno.ENOSPC


def test_an_oserror_without_errno_is_eio() -> None:
    kernel = Kernel(InnerSession(Failing(OSError("no number"))))

    assert kernel.ask(Opcode.GETATTR, BODIES["GETATTR"]).error == errno.EIO


@pytest.mark.logs("failed by a mistake of this program")
@pytest.mark.parametrize("name", ASKED)
def test_a_mistake_becomes_eio_with_a_traceback_in_the_log(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = Kernel(InnerSession(Failing(ZeroDivisionError("a mistake"))))

    assert kernel.ask(Opcode[name], BODIES[name]).error == errno.EIO

    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(f"{name.lower()} failed")
    assert record.exc_info


@pytest.mark.logs("forget")
@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad"), ZeroDivisionError("a mistake")])
def test_a_request_without_answer_gets_none_if_it_fails(error: Exception) -> None:
    kernel = Kernel(InnerSession(Failing(error)))

    kernel.tell(Opcode.FORGET, BODIES["FORGET"])
    kernel.tell(Opcode.BATCH_FORGET, BODIES["BATCH_FORGET"])


def test_wake_readers_retrieves_0_bytes_of_a_file_that_the_kernel_knows(
    inner: InnerSession, kernel: Kernel, fs: PassthroughFs, source: Path
) -> None:
    (source / "directory").mkdir()
    (source / "file").touch()
    number_of(fs, b"directory")
    assert not inner.session.wake_readers(2)
    number = number_of(fs, b"file")

    assert inner.session.wake_readers(2)

    asked = wire.NOTIFY_RETRIEVE_OUT.pack(0, number, 0, 0)
    assert inner.channel.notifications == 2 * [(Notification.RETRIEVE, asked)]
    reply = wire.NOTIFY_RETRIEVE_IN.pack(0, 0)
    kernel.tell(Opcode.NOTIFY_REPLY, reply, number)


def test_a_long_forget_leaves_no_pages_behind(inner: InnerSession, source: Path) -> None:
    rows = b"\xff" * wire.FORGET_ONE.size * 8_000  # of unknown inodes
    raw = message(Opcode.BATCH_FORGET, wire.BATCH_FORGET_IN.pack(8_000) + rows, 0, 2)
    with (source / "file").open("wb") as file:  # the channel does not read it
        channel = DeviceChannel(file.fileno())
        request = channel.open_request()
    request.into[0][: len(raw)] = raw
    request.length = len(raw)

    inner.session.answer(request, channel)

    assert not any(request.into[0])
    assert request.length == 0


@pytest.mark.parametrize(
    ("opcode", "body", "calls"),
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
def test_about_to_block_is_called_before_a_wait_for_the_disk(
    inner: InnerSession, kernel: Kernel, opcode: Opcode, body: bytes, *, calls: bool
) -> None:
    called: list[str] = []
    inner.session.about_to_block = lambda: called.append("about to block")

    kernel.ask(opcode, body)

    assert bool(called) is calls


@pytest.mark.parametrize("more", [0, abi.LK_FLOCK])
def test_a_lock_is_refused_if_no_other_thread_can_serve(
    inner: InnerSession, kernel: Kernel, source: Path, opened: Opened, more: int
) -> None:
    (source / "file").touch()
    inner.session.passes_through = False
    number, handle = opened(b"file")
    inner.session.may_wait = lambda _request: False
    lock, unlock = (
        wire.LK_IN.pack(handle, 7, 0, 9, kind, 5, more) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK)
    )

    assert kernel.ask(Opcode.SETLKW, lock, number).error == errno.ENOLCK
    for _ in range(2):  # a READ may hold pages of the file, which have to be dropped first
        assert kernel.ask(Opcode.SETLK, lock, number).error == errno.ENOLCK
    with (source / "file").open("r+b") as file:
        (fcntl.flock if more else fcntl.lockf)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert inner.channel.notifications == []

    inner.session.may_wait = lambda _request: True
    assert kernel.ask(Opcode.SETLKW, lock, number).error == 0
    assert [code for code, _ in inner.channel.notifications] == [Notification.INVAL_INODE]
    inner.session.may_wait = lambda _request: False
    assert (
        kernel.ask(Opcode.SETLKW, unlock, number).error == 0
    )  # LOCK_UN of flock(2) is sent as SETLKW
    assert kernel.ask(Opcode.SETLK, lock, number).error == 0
    kernel.release(handle)


def test_a_lock_on_a_file_that_passes_through_waits_for_no_pages(
    inner: InnerSession, kernel: Kernel, source: Path, opened: Opened
) -> None:
    (source / "file").touch()
    number, handle = opened(b"file")
    inner.session.may_wait = lambda _request: False

    lock = wire.LK_IN.pack(handle, 7, 0, 9, fcntl.F_WRLCK, 5, 0)
    assert kernel.ask(Opcode.SETLK, lock, number).error == 0
    kernel.release(handle)


def test_an_open_succeeds_though_the_kernel_has_just_forgotten_the_inode(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise os_error(errno.ENOENT)

    config = effective(cache=CachePolicy.METADATA, session=SessionKind.KERNEL)
    fs = PassthroughFs(config, os.open(source, os.O_PATH | os.O_DIRECTORY))
    (source / "file").touch()
    number = fs.lookup(abi.ROOT_ID, b"file").inode_number
    inner = InnerSession(fs)
    kernel = Kernel(inner)
    monkeypatch.setattr(inner.channel, "notify", unknown)

    assert kernel.ask(Opcode.OPEN, BODIES["OPEN"], number).error == 0
    fs.close()


def test_why_not_gives_the_reason_only_for_features_that_are_wanted(inner: InnerSession) -> None:
    Kernel(inner, EVERYTHING & ~Init.PASSTHROUGH)

    assert inner.session.why_not(Init.PASSTHROUGH) == "the kernel does not offer it"
    assert inner.session.why_not(Init.CACHE_SYMLINKS) == inner.session.why_not(Init.POSIX_ACL) == ""


def test_init_of_a_kernel_that_is_too_old_breaks_the_session(inner: InnerSession) -> None:
    assert Kernel(inner, minor=39).init.error == errno.EPROTO

    assert inner.session.agreed is None
    assert inner.session.broken is not None


@pytest.mark.logs("no header")
def test_an_empty_request_has_no_answer(kernel: Kernel) -> None:
    """read(2) of /dev/fuse never returns 0, but io_uring might."""
    assert kernel.send(b"") == []
