"""Which processes a test has started: its own children, and the workers that a child has forked."""

import contextlib
from pathlib import Path


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


def is_named(pid: int) -> bool:
    """Whether a process has a name such as a fork server gives itself and its workers."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("passfs")
    except FileNotFoundError:
        return False
