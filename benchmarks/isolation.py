"""Runs measure.py where nothing can be left behind.

In namespaces of its own for mounts and processes. When its first process ends, the kernel kills all
others and undoes the mounts, and that process dies with us, however we end: prctl(2)
PR_SET_PDEATHSIG, unshare(1) --kill-child. So whatever interrupts a run cleans up after it.
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

_COMMAND = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--propagation", "private"),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
    *(sys.executable, "-m", "benchmarks.measure"),
)


class MeasuringFailedError(Exception):
    """There is no report; *status* is how the measuring process ended, and it has said why."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the measuring process ended with {status}")
        self.status = status


def measure(plan: Plan) -> Report:
    """Carry out *plan*.

    Raises:
        MeasuringFailedError: there is no report.
        KeyboardInterrupt: also on SIGTERM.
    """
    with _terminating_as_interrupted():
        process = subprocess.Popen(
            _COMMAND,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C comes to us, and to it through us
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
