"""The counters of mounts: with each session, after deaths of workers, and in another program."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.options.choices import SessionKind, Standby, Transport
from passthrough.options.table import Requested
from passthrough.worker import control
from passthrough.worker.counters import Counters
from tests.support.fakes.keeper import LIMIT_S, Keeper, report_of
from tests.support.tools.counting import found
from tests.support.tools.processes import wait_until
from tests.support.tools.rings import switched_for

pytestmark = pytest.mark.full

CONFIGS = {
    "standby": Requested(session=SessionKind.KERNEL, standby=Standby.ON),
    "alone": Requested(session=SessionKind.KERNEL, standby=Standby.OFF),
    "io_uring": Requested(session=SessionKind.KERNEL, transport=Transport.IO_URING),
    "libfuse": Requested(session=SessionKind.LIBFUSE),
}
ASKS = 20
MOST_IDLE = 16 * 1024
"""Bytes."""
# The kernel keeps no names of attributes: each call is a request.
ASK = """
import errno, os, sys
for _ in range(int(sys.argv[2])):
    try:
        os.getxattr(sys.argv[1], "user.absent")
    except OSError as error:
        assert error.errno == errno.ENODATA, error
"""


@contextlib.contextmanager
def mount(name: str, source: Path, mountpoint: Path, tmp_path: Path) -> Iterator[Keeper]:
    (source / "file").touch()
    keeper = Keeper(source, mountpoint, tmp_path / "stderr", CONFIGS[name])
    keeper.control_fd = control.make() if keeper.control_fd is None else keeper.control_fd
    try:
        keeper.serve()
        yield keeper
    finally:
        keeper.close()


@pytest.fixture
def keeper(source: Path, mountpoint: Path, tmp_path: Path) -> Iterator[Keeper]:
    """A mount with a standby, and both guards."""
    with mount("standby", source, mountpoint, tmp_path) as keeper:
        wait_until(lambda: len(keeper.state.guard_pids) == control.GUARDS)
        yield keeper


def ask(keeper: Keeper, times: int = ASKS) -> None:
    words = [sys.executable, "-S", "-c", ASK, f"{keeper.mountpoint}/file", str(times)]
    subprocess.run(words, timeout=LIMIT_S, check=True)


def counted(keeper: Keeper) -> Counters:
    assert keeper.control_fd is not None
    return found(keeper.control_fd)


def assert_asked(keeper: Keeper, times: int) -> None:
    """Assert that the requests of `ask` count *times* in all, with errors and buckets."""
    present = counted(keeper)
    assert present.operations["GETXATTR"].requests == present.errors["ENODATA"] == times
    assert present.operations["GETXATTR"].ns > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_each_session_counts(name: str, source: Path, mountpoint: Path, tmp_path: Path) -> None:
    asked = {"transport": "io_uring"} if name == "io_uring" else {}
    with contextlib.ExitStack() as stack:
        with switched_for(asked):
            keeper = stack.enter_context(mount(name, source, mountpoint, tmp_path))
        ask(keeper)

        assert_asked(keeper, ASKS)
        assert "LOOKUP" in counted(keeper).operations


def test_no_request_is_lost_when_workers_die(keeper: Keeper) -> None:
    for death in range(1, 4):
        ask(keeper)
        before = counted(keeper)
        killed = keeper.state.worker_pid
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: keeper.state.settled == keeper.state.generation == death + 1)  # noqa: B023

        after = counted(keeper)
        assert_asked(keeper, death * ASKS)
        for name, operation in before.operations.items():
            assert operation.requests <= after.operations[name].requests


def test_the_counters_go_on_in_another_program(keeper: Keeper) -> None:
    ask(keeper)
    after = keeper.start_next()
    assert report_of(after.processes[0]).serving
    assert_asked(keeper, ASKS)
    after.keep()
    assert_asked(after, ASKS)

    ask(after)

    assert_asked(after, 2 * ASKS)
    assert_asked(keeper, ASKS)
    assert counted(after).operations["INIT"].requests == 1
    wait_until(lambda: len(after.state.guard_pids) == control.GUARDS)


def test_an_idle_mount_takes_little_memory(keeper: Keeper) -> None:
    os.stat(keeper.mountpoint)

    assert keeper.control_fd is not None
    blocks = os.fstat(keeper.control_fd).st_blocks
    assert blocks * 512 <= control.SIZE + MOST_IDLE
