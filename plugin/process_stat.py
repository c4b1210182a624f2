"""The facts about a process in /proc/PID/stat, proc_pid_stat(5)."""

import mmap
import os
from typing import Final, NamedTuple

# Fields counted after the name, which is in parentheses and may have any content.
_UTIME: Final = 11
_STIME: Final = 12
_START_TIME: Final = 19
_RSS: Final = 21


class ProcessStat(NamedTuple):
    """The processor time and the memory of a process, and its start."""

    cpu_s: float
    """In user mode and in the kernel, since the process began."""
    resident_bytes: int
    """Pages that it shares with other processes count in full."""
    started_s: float
    """By CLOCK_BOOTTIME."""


def read(pid: int) -> ProcessStat | None:
    """Return the facts about the process *pid* of this pid namespace; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    return ProcessStat(
        cpu_s=(int(fields[_UTIME]) + int(fields[_STIME])) / ticks_per_s,
        resident_bytes=int(fields[_RSS]) * mmap.PAGESIZE,
        started_s=int(fields[_START_TIME]) / ticks_per_s,
    )
