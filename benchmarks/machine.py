"""Facts about the machine, its load by other programs, and the load that a run adds."""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

Fact = str | int | float | list[float]

_SAMPLE_S = 1.0
# It uses little memory and no system call, so it competes for the processor alone.
_WORK = "import hashlib\nwhile True: hashlib.sha256(bytes(65536)).digest()"
# proc_stat(5): of the fields behind `cpu`, idle and iowait; and steal.
_IDLE, _WAITING, _STEAL = 3, 4, 7


class Watch:
    """The machine's idle and stolen time since this object was made."""

    def __init__(self) -> None:
        self._before = _jiffies()

    def shares(self) -> tuple[float, float]:
        """Return the shares of the time in which processors were idle, and were stolen."""
        spent = [now - then for now, then in zip(_jiffies(), self._before, strict=True)]
        total = sum(spent) or 1
        return (spent[_IDLE] + spent[_WAITING]) / total, spent[_STEAL] / total


def facts() -> dict[str, Fact]:
    """Return the facts about the machine before the run; takes 1 s."""
    watch = Watch()
    time.sleep(_SAMPLE_S)
    idle, _ = watch.shares()
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "io_uring": _parameter("enable_uring"),
        "idle_before": round(idle, 3),
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


def facts_after(watch: Watch) -> dict[str, Fact]:
    """Return the facts about the run, at the beginning of which *watch* was made."""
    idle, steal = watch.shares()
    return {
        "idle_during": round(idle, 3),
        "stolen_during": round(steal, 3),
        "load_after": [round(load, 2) for load in os.getloadavg()],
    }


def version(program: str) -> str:
    """Return the line with the program's name that it prints for --version, or else the first.

    Empty if *program* does not know the option. fusermount3 prints a line before sshfs's.
    """
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=False, timeout=10
    )
    printed = "" if done.returncode else done.stdout or done.stderr
    lines = printed.splitlines()
    named = (line for line in lines if os.path.basename(program) in line.lower())
    return next(named, next(iter(lines), "")).strip()


@contextmanager
def loaded(spinning: int) -> Iterator[None]:
    """Let *spinning* processes compute without end on each processor, for the length of a block."""
    count = len(os.sched_getaffinity(0)) * spinning
    # In sessions of their own: the kernel gives each session the same share, sched(7), autogroup.
    others = [
        subprocess.Popen([sys.executable, "-c", _WORK], start_new_session=True)
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _jiffies() -> list[int]:
    with open("/proc/stat", encoding="ascii") as file:
        return [int(field) for field in file.readline().split()[1:9]]


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        match = re.search(r"^model name\s*: (.+)$", file.read(), re.MULTILINE)
    return match[1] if match else "unknown"


def _parameter(name: str) -> str:
    with (
        suppress(FileNotFoundError),
        open(f"/sys/module/fuse/parameters/{name}", encoding="ascii") as file,
    ):
        return file.read().strip()
    return "unknown"
