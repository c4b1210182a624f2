"""The counters of mounts: with each session, after deaths of workers, and in another program."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pytest

from passthrough.options.choices import Passthrough, SessionKind, Standby, Transport
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
SERVED = {
    "kernel": Requested(session=SessionKind.KERNEL, passthrough=Passthrough.OFF),
    "libfuse": Requested(session=SessionKind.LIBFUSE),
    "passing": Requested(session=SessionKind.KERNEL, passthrough=Passthrough.ON),
}
ASKS = 20
FILES = 10
DATA = bytes(range(256)) * 16
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
def mount(config: Requested, source: Path, mountpoint: Path, tmp_path: Path) -> Iterator[Keeper]:
    (source / "file").touch()
    keeper = Keeper(source, mountpoint, tmp_path / "stderr", config)
    keeper.control_fd = control.make() if keeper.control_fd is None else keeper.control_fd
    try:
        keeper.serve()
        yield keeper
    finally:
        keeper.close()


@pytest.fixture
def keeper(source: Path, mountpoint: Path, tmp_path: Path) -> Iterator[Keeper]:
    """A mount with a standby, and both guards."""
    with mount(CONFIGS["standby"], source, mountpoint, tmp_path) as keeper:
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


def kill_worker(keeper: Keeper) -> None:
    """Kill the worker, and wait until the next one serves."""
    generation = keeper.state.generation
    os.kill(keeper.state.worker_pid, signal.SIGKILL)
    wait_until(lambda: keeper.state.settled == keeper.state.generation == generation + 1)


class Held(NamedTuple):
    """Files and directories that a mount has open now."""

    files: int
    directories: int
    passing_files: int


def held(keeper: Keeper) -> Held:
    present = counted(keeper)
    return Held(present.open_files, present.open_directories, present.passing_files)


@contextlib.contextmanager
def opened(keeper: Keeper) -> Iterator[BinaryIO]:
    """Have two files open, one of them twice, and a directory."""
    directory = os.open(keeper.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with (
            open(keeper.mountpoint / "file", "r+b", buffering=0) as file,
            open(keeper.mountpoint / "file", "rb"),
            open(keeper.mountpoint / "new", "wb"),
        ):
            yield file
    finally:
        os.close(directory)


@pytest.mark.parametrize("name", SERVED)
def test_opens_and_data_count(name: str, source: Path, mountpoint: Path, tmp_path: Path) -> None:
    passes = name == "passing"
    with mount(SERVED[name], source, mountpoint, tmp_path) as keeper:
        with opened(keeper) as file:
            assert held(keeper) == Held(3, 1, 2 * passes)
            os.pwrite(file.fileno(), DATA, 0)
            assert os.pread(file.fileno(), len(DATA), 0) == DATA
            os.fsync(file.fileno())

        wait_until(lambda: held(keeper) == Held(0, 0, 0))
        present = counted(keeper)
        assert (present.opens, present.passing_opens) == (3, 3 * passes)
        assert present.bytes_written == (0 if passes else len(DATA))
        assert present.bytes_read in ({0} if passes else {0, len(DATA)})  # 0: cached


def test_direct_io_does_not_pass(source: Path, mountpoint: Path, tmp_path: Path) -> None:
    with mount(SERVED["passing"], source, mountpoint, tmp_path) as keeper:
        for flags in (os.O_RDONLY, os.O_RDONLY | os.O_DIRECT):
            os.close(os.open(keeper.mountpoint / "file", flags))

        assert (counted(keeper).opens, counted(keeper).passing_opens) == (2, 1)


def test_inodes_are_those_that_the_kernel_remembers(keeper: Keeper) -> None:
    directory = keeper.mountpoint / "dir"
    before = counted(keeper).inodes
    directory.mkdir()
    for number in range(FILES):
        (directory / str(number)).touch()
    assert counted(keeper).inodes == before + FILES + 1

    shutil.rmtree(directory)
    wait_until(lambda: counted(keeper).inodes == before)


def test_what_is_held_stays_true_when_workers_die(
    source: Path, mountpoint: Path, tmp_path: Path
) -> None:
    with mount(SERVED["passing"], source, mountpoint, tmp_path) as keeper:
        wait_until(lambda: len(keeper.state.guard_pids) == control.GUARDS)
        with opened(keeper):
            before = counted(keeper)
            kill_worker(keeper)

            assert held(keeper) == Held(3, 1, 2)
            assert counted(keeper).inodes == before.inodes
            with opened(keeper):
                assert held(keeper) == Held(6, 2, 2)
            kill_worker(keeper)
        wait_until(lambda: held(keeper) == Held(0, 0, 0))
        assert (counted(keeper).opens, counted(keeper).passing_opens) == (6, 6)


def test_what_is_held_stays_true_in_another_program(keeper: Keeper) -> None:
    with opened(keeper):
        before = held(keeper)
        after = keeper.start_next()
        assert report_of(after.processes[0]).serving
        after.keep()
        assert held(after) == before
        assert counted(after).inodes == counted(keeper).inodes

    wait_until(lambda: held(after) == Held(0, 0, 0))
    assert counted(after).opens == counted(keeper).opens == 3
    wait_until(lambda: len(after.state.guard_pids) == control.GUARDS)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_session_counts(name: str, source: Path, mountpoint: Path, tmp_path: Path) -> None:
    asked = {"transport": "io_uring"} if name == "io_uring" else {}
    with contextlib.ExitStack() as stack:
        with switched_for(asked):
            keeper = stack.enter_context(mount(CONFIGS[name], source, mountpoint, tmp_path))
        ask(keeper)

        assert_asked(keeper, ASKS)
        assert "LOOKUP" in counted(keeper).operations


def test_no_request_is_lost_when_workers_die(keeper: Keeper) -> None:
    for death in range(1, 4):
        ask(keeper)
        before = counted(keeper)
        kill_worker(keeper)

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
