"""What a session makes of errors, of mistakes, and of bytes that are no request."""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from passthrough.core.filesystem import PassthroughFs
from passthrough.linux.errors import os_error
from passthrough.options.cache_policy import Cache
from passthrough.options.choices import CachePolicy, Passthrough, Sandbox, SessionKind
from passthrough.session import abi, wire
from passthrough.session.abi import Notification, Opcode
from passthrough.session.handlers.table import HANDLERS
from tests.support.fakes.kernel import Kernel, message, text
from tests.support.tools.bodies import BODIES, WITHOUT_ANSWER, WITHOUT_OPERATION
from tests.support.tools.options import effective
from tests.support.tools.requests import Recording

ASKED = sorted(set(BODIES) - WITHOUT_ANSWER - WITHOUT_OPERATION)


class Failing:
    """A file system whose every operation raises the same."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.config = effective(session=SessionKind.KERNEL)
        self.cache = Cache(self.config)

    def __getattr__(self, name: str) -> Callable[..., object]:
        def operation(*_: object, **__: object) -> object:
            raise self.error

        return operation


@pytest.mark.parametrize("name", ASKED)
def test_an_oserror_becomes_the_replys_errno(name: str) -> None:
    kernel = Kernel(Failing(OSError(errno.ENOSPC, "full")))

    assert kernel.ask(Opcode[name], BODIES[name]).error == errno.ENOSPC


def test_an_oserror_without_errno_is_eio() -> None:
    kernel = Kernel(Failing(OSError("no number")))

    assert kernel.ask(Opcode.GETATTR, BODIES["GETATTR"]).error == errno.EIO


@pytest.mark.logs("failed by a mistake of this program")
@pytest.mark.parametrize("name", ASKED)
def test_a_mistake_becomes_eio_with_a_traceback_in_the_log(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = Kernel(Failing(ZeroDivisionError("a mistake")))

    assert kernel.ask(Opcode[name], BODIES[name]).error == errno.EIO

    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(f"{name.lower()} failed")
    assert record.exc_info


@pytest.mark.logs("forget")
@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad"), ZeroDivisionError("a mistake")])
def test_what_has_no_answer_gets_none_when_it_fails(error: Exception) -> None:
    kernel = Kernel(Failing(error))

    kernel.tell(Opcode.FORGET, BODIES["FORGET"])
    kernel.tell(Opcode.BATCH_FORGET, BODIES["BATCH_FORGET"])


@pytest.mark.parametrize("name", sorted(set(BODIES) - WITHOUT_ANSWER))
def test_a_request_that_is_cut_short_is_eio(name: str) -> None:
    """Wherever it is cut: in its structure, in its name, or in its data."""
    kernel = Kernel(Recording())
    for length in range(len(BODIES[name])):
        assert kernel.ask(Opcode[name], BODIES[name][:length]).error == errno.EIO


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in sorted(set(BODIES) - WITHOUT_ANSWER)
        if BODIES[name][-1:] in {b"\0", b"a", b"e"}
    ],
)
def test_text_and_data_end_where_the_request_does(name: str) -> None:
    kernel = Kernel(Recording())
    body = BODIES[name]
    if Opcode[name] in wire.FIXED and wire.FIXED[Opcode[name]].size == len(body):
        return  # neither text nor data: what a later kernel may add is none of our business

    assert kernel.ask(Opcode[name], body + b"more").error == errno.EIO


def test_a_header_that_does_not_say_how_long_it_is_is_eio() -> None:
    kernel = Kernel(Recording())
    good = message(Opcode.LOOKUP, text(b"name"))
    for wrong in (0, 39, 40, len(good) - 1, len(good) + 1, 2**32 - 1):
        (reply,) = kernel.send(wrong.to_bytes(4, "little") + good[4:])
        assert reply.error == errno.EIO


@pytest.mark.parametrize("units", [1, 2, 100, 0xFFFF])
def test_extensions_that_are_not_there_are_eio(units: int) -> None:
    (reply,) = Kernel(Recording()).send(message(Opcode.LOOKUP, text(b"n"), extensions=units))

    assert reply.error == errno.EIO


def test_extensions_are_no_part_of_a_name() -> None:
    fs = Recording(OSError)
    groups = wire.EXTENSION.pack(16, abi.EXT_GROUPS) + wire.GROUPS.pack(1) * 2
    body = BODIES["UNLINK"] + groups

    (reply,) = Kernel(fs).send(message(Opcode.UNLINK, body, extensions=2))

    assert reply.error == 0
    assert fs.calls == [("unlink", 1, b"name")]


@pytest.mark.logs("no header")
@pytest.mark.parametrize("length", [0, 1, 39])
def test_what_has_no_header_has_no_answer(length: int) -> None:
    assert Kernel(Recording()).send(b"\x01" * length or b"") == []


@pytest.mark.logs("bytes of opcode|no .* rows")
def test_forgetting_more_than_is_said_is_logged() -> None:
    kernel = Kernel(Recording())

    kernel.tell(Opcode.BATCH_FORGET, wire.BATCH_FORGET_IN.pack(2) + wire.FORGET_ONE.pack(2, 1))
    kernel.tell(Opcode.FORGET, b"1234")


class _Quiet(logging.Handler):
    """Keeps the log of a fuzz test to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.mistakes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.mistakes.append(logging.Formatter().format(record))


@pytest.fixture
def fuzzed(source: Path) -> Iterator[tuple[Kernel, _Quiet]]:
    """A kernel of nonsense before a directory that it may do what it likes with."""
    config = effective(sandbox=Sandbox.NONE, session=SessionKind.KERNEL)
    fs = PassthroughFs(config, os.open(source, os.O_PATH | os.O_DIRECTORY))
    logger, quiet = logging.getLogger("passthrough"), _Quiet()
    logger.addHandler(quiet)
    logger.propagate = False
    yield Kernel(fs), quiet
    logger.propagate = True
    logger.removeHandler(quiet)
    fs.close()


# One file system takes all the nonsense of a test, as it would in service.
SHARED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
numbers = st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1, 2**63, 2**64 - 1]) | st.integers(
    0, 2**64 - 1
)
opcodes = st.sampled_from(sorted(HANDLERS)) | st.integers(0, 2**32 - 1)


@settings(SHARED, max_examples=400)
@given(raw=st.binary(max_size=300))
def test_arbitrary_bytes_harm_nothing(fuzzed: tuple[Kernel, _Quiet], raw: bytes) -> None:
    survives(fuzzed, raw)


@settings(SHARED, max_examples=600)
@given(opcode=opcodes, nodeid=numbers, body=st.binary(max_size=200), extensions=st.integers(0, 30))
def test_arbitrary_bodies_harm_nothing(
    fuzzed: tuple[Kernel, _Quiet], opcode: int, nodeid: int, body: bytes, extensions: int
) -> None:
    survives(fuzzed, message(opcode, body, nodeid, 2, extensions))


@settings(SHARED, max_examples=600)
@given(data=st.data(), name=st.sampled_from(sorted(BODIES)), nodeid=numbers)
def test_good_requests_with_some_bytes_changed_harm_nothing(
    fuzzed: tuple[Kernel, _Quiet], data: st.DataObject, name: str, nodeid: int
) -> None:
    raw = bytearray(message(Opcode[name], BODIES[name], nodeid))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    survives(fuzzed, bytes(raw[:cut] if data.draw(st.booleans()) else raw))


def survives(fuzzed: tuple[Kernel, _Quiet], raw: bytes) -> None:
    """At most one answer, no mistake in the log, and the next request is answered as ever."""
    kernel, quiet = fuzzed
    replies = kernel.send(raw)

    assert len(replies) <= 1
    assert quiet.mistakes == []
    assert kernel.ask(Opcode.GETATTR, BODIES["GETATTR"]).error == 0


def test_an_open_under_metadata_forgets_the_attributes(source: Path) -> None:
    config = effective(cache=CachePolicy.METADATA, session=SessionKind.KERNEL)
    fs = PassthroughFs(config, os.open(source, os.O_PATH | os.O_DIRECTORY))
    (source / "file").touch()
    number = fs.lookup(abi.ROOT_ID, b"file").inode_number
    kernel = Kernel(fs, config)

    assert kernel.ask(Opcode.OPEN, BODIES["OPEN"], number).error == 0

    assert kernel.channel.notifications == [
        (Notification.INVAL_INODE, wire.NOTIFY_INVAL_INODE_OUT.pack(number, -1, 0))
    ]
    fs.close()


def test_an_open_of_what_the_kernel_has_just_forgotten_keeps_its_handle(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise os_error(errno.ENOENT)

    config = effective(cache=CachePolicy.METADATA, session=SessionKind.KERNEL)
    fs = PassthroughFs(config, os.open(source, os.O_PATH | os.O_DIRECTORY))
    (source / "file").touch()
    number = fs.lookup(abi.ROOT_ID, b"file").inode_number
    kernel = Kernel(fs, config)
    monkeypatch.setattr(kernel.channel, "notify", unknown)

    assert kernel.ask(Opcode.OPEN, BODIES["OPEN"], number).error == 0
    fs.close()


@pytest.mark.parametrize(
    ("cache", "flags", "allowed"),
    [
        (CachePolicy.AUTO, os.O_RDONLY, abi.FOPEN_NOFLUSH),
        (CachePolicy.AUTO, os.O_RDWR, 0),
        (CachePolicy.ALWAYS, os.O_WRONLY, abi.FOPEN_KEEP_CACHE),
        (CachePolicy.ALWAYS, os.O_RDONLY, abi.FOPEN_KEEP_CACHE | abi.FOPEN_NOFLUSH),
    ],
)
def test_what_an_open_file_allows(cache: CachePolicy, flags: int, allowed: int) -> None:
    config = effective(cache=cache, session=SessionKind.KERNEL, passthrough=Passthrough.OFF)
    locks = SimpleNamespace(used=False)
    fs = SimpleNamespace(
        squashes=False, config=config, cache=Cache(config), open=lambda *_, **__: 5, locks=locks
    )

    reply = Kernel(fs, config).ask(Opcode.OPEN, wire.OPEN_IN.pack(flags, 0))
    assert wire.OPEN_OUT.unpack(reply.body) == (5, allowed, 0)

    locks.used = True  # which end when a file is closed, of which FLUSH tells
    reply = Kernel(fs, config).ask(Opcode.OPEN, wire.OPEN_IN.pack(flags, 0))
    assert wire.OPEN_OUT.unpack(reply.body) == (5, allowed & ~abi.FOPEN_NOFLUSH, 0)


@pytest.mark.parametrize(
    ("cache", "allowed"),
    [
        (CachePolicy.AUTO, 0),
        (CachePolicy.ALWAYS, abi.FOPEN_KEEP_CACHE | abi.FOPEN_CACHE_DIR),
    ],
)
def test_what_an_open_directory_allows(cache: CachePolicy, allowed: int) -> None:
    config = effective(cache=cache, session=SessionKind.KERNEL)
    fs = SimpleNamespace(squashes=False, config=config, cache=Cache(config), opendir=lambda _: 5)

    reply = Kernel(fs, config).ask(Opcode.OPENDIR, BODIES["OPENDIR"])

    assert wire.OPEN_OUT.unpack(reply.body) == (5, allowed, 0)
