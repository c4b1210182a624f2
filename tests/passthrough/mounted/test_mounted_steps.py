"""A mount on which the worker dies at each step of each request of an operation.

The caller sees nothing of that: the results and the tree are those of a mount on which it lives.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough.linux.syscalls import RENAME_NOREPLACE, renameat2
from tests.passthrough.core.probe_steps import STEPS
from tests.support.tools.core_builds import BUILD_LIMIT_S
from tests.support.tools.core_operations import prepare, tree
from tests.support.tools.core_standby import Word
from tests.support.tools.host_calls import RENAME_EXCHANGE, RENAME_WHITEOUT
from tests.support.tools.mounted import Mounted, mounted

pytestmark = pytest.mark.timeout(BUILD_LIMIT_S)

LIMIT_S = 90.0
AT_FDCWD = -100
# A RELEASE comes after close(2) has returned.
LATE_S = 0.05
MOST = 60

Operation = Callable[[Path], object]


def _with(name: str, flags: int, *calls: Callable[[int], object]) -> Operation:
    def operation(directory: Path) -> list[object]:
        fd = os.open(directory / name, flags, 0o640)
        try:
            return [call(fd) for call in calls]
        finally:
            os.close(fd)

    return operation


def _copy(directory: Path) -> int:
    with (directory / "file").open("rb") as source, (directory / "other").open("rb+") as target:
        return os.copy_file_range(source.fileno(), target.fileno(), 100, 0, 3)


def _append(fd: int) -> int:
    return os.write(fd, b"data")


def _renamed(old: str, new: str, flags: int = 0) -> Operation:
    def operation(directory: Path) -> None:
        paths = os.fsencode(directory / old), os.fsencode(directory / new)
        renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], flags)

    return operation


MAKING = os.O_CREAT | os.O_EXCL | os.O_RDWR
OPERATIONS: dict[str, Operation] = {
    "mkdir": lambda directory: (directory / "new").mkdir(0o750),
    "mknod": lambda directory: os.mknod(directory / "new", 0o010640),
    "symlink": lambda directory: (directory / "new").symlink_to("target"),
    "link": lambda directory: (directory / "new").hardlink_to(directory / "file"),
    "unlink": lambda directory: (directory / "file").unlink(),
    "rmdir": lambda directory: (directory / "empty").rmdir(),
    "rename": _renamed("file", "new"),
    "rename over": _renamed("file", "other"),
    "rename without replacing": _renamed("file", "new", RENAME_NOREPLACE),
    "exchange": _renamed("file", "full", RENAME_EXCHANGE),
    "rename with a whiteout": _renamed("file", "other", RENAME_WHITEOUT),
    "create": _with("new", MAKING, _append),
    "tmpfile": _with(".", os.O_TMPFILE | os.O_RDWR, _append),
    "append": _with("file", os.O_WRONLY | os.O_APPEND, _append, _append),
    "append synchronously": _with("file", os.O_RDWR | os.O_APPEND | os.O_SYNC, _append),
    "write": _with("file", os.O_RDWR, lambda fd: os.pwrite(fd, b"data", 3)),
    "truncate": _with("file", os.O_RDWR, lambda fd: os.ftruncate(fd, 3), os.fsync),
    "open that truncates": _with("file", os.O_WRONLY | os.O_TRUNC, _append),
    "allocate": _with("file", os.O_RDWR, lambda fd: os.posix_fallocate(fd, 0, 10_000)),
    "copy": _copy,
    "chmod": lambda directory: (directory / "file").chmod(0o4711),
    "chown": lambda directory: os.chown(directory / "program", 7, 8),
    "setxattr": lambda directory: os.setxattr(
        directory / "file", "user.b", b"value", os.XATTR_CREATE
    ),
    "removexattr": lambda directory: os.removexattr(directory / "file", "user.a"),
    "list": lambda directory: sorted(path.name for path in os.scandir(directory)),
    "read": lambda directory: (directory / "file").read_bytes(),
}


@pytest.fixture(scope="module")
def mount(steps_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mount by a build with steps and with a standby."""
    base = tmp_path_factory.mktemp("mounted")
    with mounted(base, {"session": "kernel", "standby": "on"}, tree=steps_build) as served:
        yield served


def done(operation: Operation, directory: Path) -> object:
    """Return the result of an operation, or its errno."""
    try:
        return operation(directory)
    except OSError as error:
        return error.errno


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_caller_notices_a_death(name: str, mount: Mounted) -> None:
    numbers = itertools.count()
    operation = OPERATIONS[name]

    def act() -> tuple[object, object]:
        path = f"{name}-{next(numbers)}"
        (mount.source / path).mkdir()
        prepare(mount.source / path)
        return done(operation, mount.mountpoint / path), tree(mount.source / path)

    with mount.limited(LIMIT_S), Word(mount.worker_pid) as word:
        expected = act()
        for step in STEPS:
            for passes in range(MOST):
                word.arm(step, passes=passes)
                assert (step, passes, act()) == (step, passes, expected)
                deadline = time.monotonic() + LATE_S
                while word.is_armed() and time.monotonic() < deadline:
                    time.sleep(LATE_S / 10)
                if word.disarm():
                    break
