"""Processes that a test has started: its children, and the workers that a child has forked."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ORPHANS_END_S = 20.0


def children(pid: int | str = "self") -> set[int]:
    """Return the children of process *pid*, of all its threads; none if it has ended."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for text in threads(pid, "children").values():
            found |= {int(child) for child in text.split()}
    return found


def threads(pid: int | str, name: str) -> dict[int, str]:
    """Return the content of the file *name* in /proc of each thread of process *pid*.

    Threads that end meanwhile may be missing.
    """
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[int(task.name)] = (task / name).read_text()
    return found


def workers() -> set[int]:
    """Return the workers that the fork servers of this process have forked."""
    return {worker for child in children() for worker in children(child)}


def kill_all(worker: int) -> None:
    """Kill a worker with its guards, which are its process group: nothing can replace it."""
    os.killpg(os.getpgid(worker), signal.SIGKILL)


def members(worker: int) -> set[int]:
    """Return the live processes of the process group of *worker*: the worker and its guards."""
    return group(os.getpgid(worker))


def group(number: int) -> set[int]:
    """Return the live processes of a process group."""
    return {pid for pid in _processes() if _group(pid) == number and lives(pid)}


def lives(pid: int) -> bool:
    """Return whether *pid* is a process that has not ended; a zombie has."""
    return _stat(pid)[0] not in "ZX"


def parent(pid: int) -> int:
    """Return the parent of the live process *pid*."""
    return int(_stat(pid)[1])


def cpu_s(pid: int) -> float:
    """Return the processor time of the live process *pid* in seconds, to a tick of 10 ms."""
    user, system = _stat(pid)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def descriptors(pid: int | str = "self") -> dict[int, str]:
    """Return the open descriptors of a process, each with what it leads to.

    Descriptors that the process closes meanwhile may be missing.
    """
    found: dict[int, str] = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def _processes() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").glob("[0-9]*"))


def _stat(pid: int) -> list[str]:
    """Return the fields of proc_pid_stat(5) from the state on."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ["X"]


def _group(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid)
    return 0


def reap(before: set[int]) -> None:
    """Reap the children that are not in *before*; wait ORPHANS_END_S for the end of all.

    Orphans become children of this process, which is a subreaper.
    """
    limit = time.monotonic() + ORPHANS_END_S
    while (left := children() - before) and time.monotonic() < limit:
        for pid in left:
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.001)


def end(before: set[int]) -> None:
    """Kill the children that are not in *before*, and the orphans that become children by that."""
    while left := children() - before:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def wait_until(holds: Callable[[], bool], limit_s: float = 30.0) -> None:
    """Wait until *holds* returns true, where no event reaches this process; fail at the limit."""
    until = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.001)
