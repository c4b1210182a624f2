"""The processor time and the memory of a process, by the plugin's /proc, proc_pid_stat(5)."""

import mmap
import os
from typing import Final, NamedTuple

# Fields counted after the name, which is in parentheses and may have any content.
_UTIME: Final = 11
_STIME: Final = 12
_RSS: Final = 21


class Usage(NamedTuple):
    """What a process has used."""

    cpu_s: float
    """In user mode and in the kernel, since the process began."""
    resident_bytes: int
    """Pages that it shares with other processes count in full."""


def usage(pid: int) -> Usage | None:
    """Return the usage of the process *pid* of the plugin's pid namespace; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    ticks = int(fields[_UTIME]) + int(fields[_STIME])
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), int(fields[_RSS]) * mmap.PAGESIZE)
