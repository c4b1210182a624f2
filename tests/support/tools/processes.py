"""Which processes a test has started: its own children, and the workers that a child has forked."""

import contextlib
import os
import signal
import time
from pathlib import Path

ORPHANS_END_S = 5.0


def children(pid: int | str = "self") -> set[int]:
    """The children of a process, of whichever of its threads."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one may end while we look
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def workers() -> set[int]:
    """What our fork servers have forked."""
    return {worker for child in children() for worker in children(child)}


def reap(before: set[int]) -> None:
    """Wait for children that are not among *before*, if they are about to end.

    Orphans come to this process, whose own children nobody else waits for here.
    """
    limit = time.monotonic() + ORPHANS_END_S
    for pid in children() - before:
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < limit:
            time.sleep(0.01)


def end(before: set[int]) -> None:
    """Kill children that are not among *before*, and theirs, which come to this process then."""
    while left := children() - before:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
