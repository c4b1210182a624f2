"""Rules for all tests: they run as root with /dev/fuse, and leave nothing behind.

The run has a mount namespace of its own: other mounts on the machine do not matter to it.
"""

import ctypes
import gc
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from passthrough.linux import mountinfo
from passthrough.linux.mountinfo import FSTYPE
from tests.support.tools.files import public_directory
from tests.support.tools.namespaces import MACHINE, leave_machine
from tests.support.tools.processes import children, descriptors, reap

# A busy machine may stall an example for longer than the default deadline of 0.2 s.
hypothesis.settings.register_profile(
    "passfs", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("passfs")

PR_SET_CHILD_SUBREAPER = 36
SLOW_S = 5.0


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stop a run without root or /dev/fuse; otherwise move it to a mount namespace of its own."""
    if os.geteuid() != 0:
        pytest.exit("the tests mount file systems and act as several users: run them as root", 2)
    if not os.path.exists("/dev/fuse"):
        pytest.exit("the tests need /dev/fuse: load the kernel's fuse module", 2)
    try:
        session.config.stash[MACHINE] = leave_machine()
    except OSError as error:
        pytest.exit(f"the tests need a mount namespace of their own: {error}", 2)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List tests that took more than SLOW_S without the mark `slow`.

    On a busy machine the list has quick tests, too. Tests with an engine wait for its images.
    """
    unmarked = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport)
        and report.duration > SLOW_S
        and not report.keywords.keys() & {"slow", "engine"}
    ]
    if unmarked:
        terminalreporter.section(f"over {SLOW_S:g} s without the mark slow")
    for report in unmarked:
        terminalreporter.line(f"{report.duration:.1f} s {report.when} {report.nodeid}")


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.name}: {record.getMessage()}")


@pytest.fixture(autouse=True)
def nothing_logged_unexpectedly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test if its records of WARNING or worse do not fit its marks `logs(pattern)`."""
    expected = [str(marker.args[0]) for marker in request.node.iter_markers("logs")]
    handler = _Warnings()
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)
    undeclared = [
        message
        for message in handler.messages
        if not any(re.search(pattern, message) for pattern in expected)
    ]
    missing = [
        pattern
        for pattern in expected
        if not any(re.search(pattern, message) for message in handler.messages)
    ]

    assert undeclared == []
    assert missing == []


@pytest.fixture(autouse=True, scope="session")
def _orphans_become_children() -> None:
    """Become the parent of workers that outlive their fork server, to find them after a test."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a descriptor, a passfs mount or a child process."""
    opened, mounts, processes = descriptors(), _mounts(), children()
    yield
    if descriptors().items() - opened.items():
        gc.collect()  # too slow after each of 12,000 tests

    assert descriptors().items() - opened.items() == set()
    reap(processes)
    assert _mounts() - mounts == set()
    assert children() - processes == set()


@pytest.fixture
def base() -> Iterator[Path]:
    """Return a directory that every user may enter."""
    with public_directory() as path:
        yield path


def _mounts() -> set[bytes]:
    return {mount.target for mount in mountinfo.read() if mount.fstype == FSTYPE}
