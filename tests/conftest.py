"""What holds for every test: root and /dev/fuse are there, and nothing is left behind."""

import ctypes
import gc
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux import mountinfo
from passthrough.linux.mountinfo import FSTYPE
from tests.support.tools.files import public_directory
from tests.support.tools.namespaces import MACHINE, leave_machine
from tests.support.tools.processes import children, reap

PR_SET_CHILD_SUBREAPER = 36


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stop a run that could not mount, and give a run that can a mount namespace of its own."""
    if os.geteuid() != 0:
        pytest.exit("the tests mount file systems and act as several users: run them as root", 2)
    if not os.path.exists("/dev/fuse"):
        pytest.exit("the tests need /dev/fuse: load the kernel's fuse module", 2)
    try:
        session.config.stash[MACHINE] = leave_machine()
    except OSError as error:
        pytest.exit(f"the tests need a mount namespace of their own: {error}", 2)


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.name}: {record.getMessage()}")


@pytest.fixture(autouse=True)
def nothing_logged_unexpectedly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every WARNING or worse is declared with `@pytest.mark.logs(pattern)`, and comes."""
    expected = [str(marker.args[0]) for marker in request.node.iter_markers("logs")]
    handler = _Warnings()
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)
    surprises = [
        message
        for message in handler.messages
        if not any(re.search(pattern, message) for pattern in expected)
    ]
    missing = [
        pattern
        for pattern in expected
        if not any(re.search(pattern, message) for message in handler.messages)
    ]

    assert surprises == []
    assert missing == []


@pytest.fixture(autouse=True, scope="session")
def _orphans_are_ours() -> None:
    """A worker that outlives its fork server becomes a child of this process, and is noticed."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No descriptor, no passfs mount and no child process outlives a test."""
    descriptors, mounts, processes = _descriptors(), _mounts(), children()
    yield
    if _descriptors() - descriptors:
        gc.collect()  # too slow to do after each of thousands of tests

    assert _descriptors() - descriptors == set()
    reap(processes)
    assert _mounts() - mounts == set()
    assert children() - processes == set()


@pytest.fixture
def base() -> Iterator[Path]:
    """Return a directory that every user may enter."""
    with public_directory() as path:
        yield path


def _descriptors() -> set[tuple[int, str]]:
    """Open descriptors with what they refer to."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:  # the listing's own descriptor
            continue
    return found


def _mounts() -> set[bytes]:
    return {mount.target for mount in mountinfo.read() if mount.fstype == FSTYPE}
