"""Processor time and memory of other processes, proc(5)."""

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator

# Each process has a clock of its processor time, clock_getcpuclockid(3): its number is made of
# the PID and this constant. Unlike /proc/PID/stat it counts nanoseconds.
_PROCESS_CLOCK = 2
_SETTLED_S, _SETTLING_S = 0.004, 2.0
_PARTS = 2


def serving() -> list[int]:
    """Return the processes with /dev/fuse open: in this namespace, those that serve mounts."""
    return [pid for pid in running() if _has_open(pid, "/dev/fuse")]


def running() -> Iterator[int]:
    """Return every process that this one can see."""
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def descendants(pid: int) -> list[int]:
    """Return the children of *pid*, and their descendants."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                for child in map(int, file.read().split()):
                    found += [child, *descendants(child)]
    return found


def groups(pids: Iterable[int]) -> set[int]:
    """Return the process groups of *pids*; one that has ended has none."""
    found = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            found.add(os.getpgid(pid))
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return user and system time in sum; a process that has ended counts as 0."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += time.clock_gettime(~pid << 3 | _PROCESS_CLOCK)
    return total


def user_and_system(pids: Iterable[int]) -> tuple[float, float]:
    """Return user and system time, in seconds, to the hundredth: proc_pid_stat(5).

    A process that has ended counts as 0.
    """
    ticks = [0] * _PARTS
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
            for index in range(_PARTS):
                ticks[index] += int(fields[11 + index])
    user, system = (count / os.sysconf("SC_CLK_TCK") for count in ticks)
    return user, system


def proportional_bytes(pids: Iterable[int]) -> int:
    """Return the memory, shared pages divided among their processes: PSS, proc_pid_smaps(5)."""
    total = 0
    for pid in pids:
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),
            open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file,
        ):
            match = re.search(r"^Pss: +(\d+) kB$", file.read(), re.MULTILINE)
            total += int(match[1]) * 1024 if match else 0
    return total


def settle(pids: Iterable[int]) -> None:
    """Wait until *pids* are idle, so that earlier work is not counted; at most 2 s."""
    pids = list(pids)
    deadline = time.monotonic() + _SETTLING_S
    before = -1.0
    while (now := cpu_seconds(pids)) != before and time.monotonic() < deadline:
        before = now
        time.sleep(_SETTLED_S)


def _has_open(pid: int, path: str) -> bool:
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == path:
                    return True
    return False
