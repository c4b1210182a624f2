"""Processes that a test has started: its children, and the workers that a child has forked."""

import contextlib
import os
import signal
import time
from pathlib import Path

ORPHANS_END_S = 5.0


def children(pid: int | str = "self") -> set[int]:
    """Return the children of process *pid*, of all its threads."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a task may end meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def workers() -> set[int]:
    """Return the workers that the fork servers of this process have forked."""
    return {worker for child in children() for worker in children(child)}


def reap(before: set[int]) -> None:
    """Reap the children that are not in *before*; wait ORPHANS_END_S for the end of each.

    Orphans become children of this process, which is a subreaper.
    """
    limit = time.monotonic() + ORPHANS_END_S
    for pid in children() - before:
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < limit:
            time.sleep(0.01)


def end(before: set[int]) -> None:
    """Kill the children that are not in *before*, and the orphans that become children by that."""
    while left := children() - before:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
