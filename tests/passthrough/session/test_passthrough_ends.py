"""Kernel passthrough leaves nothing behind, though files are removed and callers are killed."""

import errno
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.tools.callers import MEMBER, ROOT, USER, together
from tests.support.tools.mounted import Mounted, mounted
from tests.support.tools.mounts import mounted_on

pytestmark = pytest.mark.full

LIMIT_S = 100.0
SEEDS = range(4)
STEPS = 1_500
MOST_OPEN = 12
NAMES = 6
ACCESS = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
OTHERS = (0, 0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_TRUNC, os.O_APPEND, os.O_DIRECT)
MET = {errno.ENOENT, errno.EEXIST, errno.EBADF, errno.ESTALE, errno.EACCES, errno.EPERM}
"""Errors to expect while others own, rename and unlink files, and open some only to read."""


@pytest.fixture
def served(base: Path) -> Iterator[Mounted]:
    """A volume on a file system of its own, which counts its files."""
    (base / "source").mkdir()
    options = {"session": "kernel", "passthrough": "on"}
    with mounted_on(base / "source", "tmpfs"), mounted(base, options) as volume:
        volume.source.chmod(0o777)
        with volume.limited(LIMIT_S):
            yield volume


def storm(top: Path, seed: int) -> None:
    """Open, use, rename, unlink and close files, as other processes do with the same files."""
    choose = random.Random(seed)  # noqa: S311 - the same each time
    names = [top / f"{number}" for number in range(NAMES)]
    fds: list[int] = []

    def open_one() -> None:
        flags = choose.choice(ACCESS) | choose.choice(OTHERS)
        fds.append(os.open(choose.choice(names), flags, 0o666))

    def close_one() -> None:
        if fds:
            os.close(fds.pop(choose.randrange(len(fds))))

    calls = (
        *(open_one, open_one, open_one, close_one, close_one),
        lambda: fds.append(os.open(top, os.O_TMPFILE | os.O_RDWR, 0o600)),
        lambda: fds.append(os.dup(choose.choice(fds))) if fds else None,
        lambda: os.pwrite(choose.choice(fds), b"written", 0) if fds else None,
        lambda: os.pread(choose.choice(fds), 100, 0) if fds else None,
        lambda: choose.choice(names).chmod(choose.choice([0o666, 0o6777])),
        lambda: os.unlink(choose.choice(names)),
        lambda: os.rename(choose.choice(names), choose.choice(names)),
        lambda: os.link(choose.choice(names), choose.choice(names)),
    )
    for _ in range(STEPS):
        try:
            choose.choice(calls)()
        except OSError as error:
            if error.errno not in MET:
                raise
        while len(fds) > MOST_OPEN:
            close_one()
    for fd in fds:
        os.close(fd)


def test_concurrent_users_leave_no_file_held(served: Mounted) -> None:
    """The host's files are all gone: no backing id, descriptor or inode keeps one.

    One process is killed with files open.
    """
    empty = os.statvfs(served.source).f_ffree
    callers = itertools.cycle([ROOT, USER, MEMBER])
    calls = [
        caller.start(partial(storm, served.mountpoint, seed), umask=0)
        for seed, caller in zip(SEEDS, callers, strict=False)
    ]
    with USER.start(partial(hold, served.mountpoint), umask=0):  # killed at the end of the block
        together(calls)
        wait(lambda: os.statvfs(served.source).f_ffree <= empty - NAMES)
    for path in served.mountpoint.iterdir():
        path.unlink()

    # The kernel does not wait for RELEASE and FORGET.
    wait(lambda: os.statvfs(served.source).f_ffree == empty)


def wait(until: Callable[[], bool]) -> None:
    while not until():  # the test's own time limit ends it
        time.sleep(0.01)


def hold(top: Path) -> None:
    """Hold unnamed files open, with two descriptors each, until killed."""
    for _ in range(NAMES):
        os.dup(os.open(top, os.O_TMPFILE | os.O_RDWR, 0o600))
    signal.pause()
