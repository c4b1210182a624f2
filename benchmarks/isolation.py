"""Runs measure.py in mount and process namespaces of its own, so that nothing is left behind.

When the first process of the namespaces ends, the kernel kills all others and undoes the mounts.
That process dies with this one, however this one ends: prctl(2) PR_SET_PDEATHSIG, unshare(1)
--kill-child. So the kernel cleans up after every interruption.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from benchmarks.plan import Plan
from benchmarks.report import Report
from benchmarks.subjects import REPOSITORY

NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--propagation", "private"),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
)
"""The words before a command that runs in namespaces of its own."""
_COMMAND = (*NAMESPACES, sys.executable, "-m", "benchmarks.measure")


class MeasuringFailedError(Exception):
    """No report. *status* is the exit status of the measuring process, which printed the cause."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the measuring process ended with {status}")
        self.status = status


def measure(plan: Plan) -> Report:
    """Run *plan* and return its report.

    Raises:
        MeasuringFailedError: the measuring process failed.
        KeyboardInterrupt: also on SIGTERM.
    """
    with _terminating_as_interrupted():
        process = subprocess.Popen(
            _COMMAND,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C signals only this process, which kills the child
        )
        try:
            report, _ = process.communicate(msgspec.json.encode(plan))
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise MeasuringFailedError(process.returncode)
    return msgspec.json.decode(report, type=Report)


@contextmanager
def _terminating_as_interrupted() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
