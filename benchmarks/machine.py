"""What the figures belong to: the machine, what else it had to do, and the load that we add."""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

Fact = str | int | float | list[float]

_LOOK_S = 1.0
# Neither memory nor a system call: what competes is the processor alone.
_WORK = "import hashlib\nwhile True: hashlib.sha256(bytes(65536)).digest()"
# proc_stat(5): of the fields behind `cpu`, idle and iowait; and steal.
_IDLE, _WAITING, _STEAL = 3, 4, 7


class Watch:
    """How busy the machine was between making this and asking."""

    def __init__(self) -> None:
        self._before = _jiffies()

    def shares(self) -> tuple[float, float]:
        """The shares of the time in which processors were idle, and had been taken from us."""
        spent = [now - then for now, then in zip(_jiffies(), self._before, strict=True)]
        total = sum(spent) or 1
        return (spent[_IDLE] + spent[_WAITING]) / total, spent[_STEAL] / total


def facts() -> dict[str, Fact]:
    """The machine before the run."""
    watch = Watch()
    time.sleep(_LOOK_S)
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
    """The machine after the run, which *watch* saw begin."""
    idle, steal = watch.shares()
    return {
        "idle_during": round(idle, 3),
        "stolen_during": round(steal, 3),
        "load_after": [round(load, 2) for load in os.getloadavg()],
    }


def version(program: str) -> str:
    """What *program* says of its version, one line."""
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=False, timeout=10
    )
    return next(iter((done.stdout or done.stderr).splitlines()), "").strip()


@contextmanager
def loaded(*, wanted: bool) -> Iterator[None]:
    """Give every processor something else to do for the length of a block, if *wanted*."""
    count = len(os.sched_getaffinity(0)) if wanted else 0
    others = [subprocess.Popen([sys.executable, "-c", _WORK]) for _ in range(count)]
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
