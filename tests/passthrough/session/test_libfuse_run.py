"""The stand-in for trio under pyfuse3; test_process.py and tests/posix serve mounts with it."""

import errno
import logging
import os
import socket
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pyfuse3.asyncio
import pytest

from passthrough.core.face import Core
from passthrough.options.choices import SessionKind
from passthrough.session import abi, libfuse
from passthrough.session.abi import Opcode
from passthrough.session.kernel import Served
from passthrough.session.libfuse_run import Scheduler, run
from tests.support.tools import wire
from tests.support.tools.abi import Notification
from tests.support.tools.options import effective


def test_a_scheduler_has_all_that_pyfuse3_uses_of_trio() -> None:
    """pyfuse3/asyncio.py is the list: if this test fails, read how that file has changed."""
    own = {"enable", "disable"}  # they put the stand-in in place
    for_terminate = {"notify_closing"}  # only pyfuse3.terminate() uses it, which is never called
    theirs = {
        name
        for name, value in vars(pyfuse3.asyncio).items()
        if not name.startswith("_")
        and (getattr(value, "__module__", "") == "pyfuse3.asyncio" or name == "Lock")
    }

    assert theirs - own - for_terminate == {
        *("ClosedResourceError", "Lock", "current_task", "current_trio_token"),
        *("open_nursery", "wait_readable"),
    }
    scheduler = Scheduler(-1, -1, None)
    assert all(hasattr(scheduler, name) for name in theirs - own - for_terminate)


def test_a_wait_of_pyfuse3_for_anything_but_requests_raises() -> None:
    """A later pyfuse3 might sleep, or wait for two things at once."""

    class Pause:
        def __await__(self) -> Generator[None]:
            yield

    async def main() -> None:
        await Pause()

    with pytest.raises(RuntimeError, match="pyfuse3 waits for something other than its next"):
        libfuse._finish(main())


def test_an_end_of_the_connection_during_a_read_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def serve(*_: object) -> None:
        raise ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))

    monkeypatch.setattr(libfuse, "serve", serve)
    with open("/dev/fuse", "rb", buffering=0) as fuse:
        run(cast("Served", SimpleNamespace(core=None)), fuse.fileno(), lambda _: None, None)


class Ends:
    """The descriptors that a scheduler waits for, and their other ends."""

    def __init__(self) -> None:
        self.fuse, self.kernel = socket.socketpair()
        self.wakeup, self.signal = socket.socketpair()
        self.life, self.keeper = socket.socketpair()

    def wait(self, core: Core | None = None) -> None:
        """Wait as pyfuse3 does; the task must not be suspended."""
        scheduler = Scheduler(self.fuse.fileno(), self.wakeup.fileno(), self.life.fileno(), core)

        async def task() -> None:
            await scheduler.wait_readable(self.fuse.fileno())

        libfuse._finish(task())

    def close(self) -> None:
        for end in (self.fuse, self.kernel, self.wakeup, self.signal, self.life, self.keeper):
            end.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


@pytest.mark.parametrize(
    ("minor", "codes"), [(abi.LEAST_MINOR, []), (abi.MINOR, [Notification.PRUNE])]
)
def test_only_a_kernel_that_can_is_asked_to_forget_removed_files(
    ends: Ends, source: Path, minor: int, codes: list[int]
) -> None:
    """The host has removed the file. NOTIFY_PRUNE came with protocol 7.45."""
    (source / "file").touch()
    served = Served(effective(session=SessionKind.LIBFUSE), os.open(source, os.O_PATH))
    served.core.agree(0, minor, passthrough=False)
    served.core.use_device(ends.fuse.fileno())
    with ThreadPoolExecutor(1) as thread:  # serving takes capabilities from the thread
        asked = (Opcode.LOOKUP, abi.ROOT_ID, 0, 0, os.getpid(), b"file\0")
        thread.submit(served.core.call, *asked).result()
    (source / "file").unlink()
    ends.kernel.send(b"request")

    ends.wait(served.core)

    served.close()
    ends.fuse.shutdown(socket.SHUT_WR)
    sent = ends.kernel.recv(1024)
    assert [
        code for _, code, _ in wire.OUT_HEADER.iter_unpack(sent[: wire.OUT_HEADER.size])
    ] == codes


def test_wait_readable_returns_if_there_is_a_request(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ends.kernel.send(b"one")

    ends.wait()

    assert caplog.messages == []


def test_a_signal_takes_precedence_over_requests(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ends.kernel.send(b"one")
    ends.signal.send(b"\x0f")

    with pytest.raises(Scheduler.ClosedResourceError):
        ends.wait()
    assert caplog.messages == []


def test_the_end_of_the_keeper_takes_precedence_over_requests(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ends.kernel.send(b"one")
    ends.keeper.close()

    with pytest.raises(Scheduler.ClosedResourceError):
        ends.wait()
    assert caplog.messages == ["the keeper of this mount has ended; so does its worker"]


async def test_tasks_run_at_the_end_of_the_nursery() -> None:
    order: list[str] = []

    async def task(text: str) -> None:
        order.append(text)

    async with Scheduler.open_nursery() as nursery:
        nursery.start_soon(task, "one", name="a")
        order.append("body")
        async with Scheduler.Lock():
            order.append("locked")

    assert order == ["body", "locked", "one"]
