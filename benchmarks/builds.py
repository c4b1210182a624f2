"""Compares the processor time of requests between this checkout of passfs and another one.

Run it as root: `python -m benchmarks.builds OTHER`. Each checkout serves a mount with its own
.venv, both at the same time. Short batches of GETATTR and LOOKUP alternate between the mounts, so
that load on the machine slows both. Each round has a ratio, this checkout's time over the other's.

The servers run on one processor. The caller runs on the same one, or on another one. The latter is
dearer, because each request wakes a processor. Without these places, the scheduler would choose
one of the two now and then.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks import machine, processes
from benchmarks.isolation import NAMESPACES
from benchmarks.subjects import REPOSITORY, is_mounted
from passthrough.worker.fuse_mount import unmount

_ROUNDS: Final = 5
_BATCHES: Final = 40
_REQUESTS: Final = 2_000
_START_S: Final = 20.0
_POLL_S: Final = 0.01
# With these timeouts the kernel sends a request for each call.
_OPTIONS: Final = ("-o", "attr_timeout=0", "-o", "entry_timeout=0")
_NAME: Final = "file"


class _Side:
    """The mount of one checkout."""

    def __init__(self, mountpoint: Path, server: int) -> None:
        self._pids = [server, *processes.descendants(server)]
        self._directory = os.open(mountpoint, os.O_RDONLY)
        self._file = os.open(_NAME, os.O_RDONLY, dir_fd=self._directory)

    def attributes(self) -> None:
        """Cause a GETATTR."""
        os.fstat(self._file)

    def look_up(self) -> None:
        """Cause a LOOKUP and a GETATTR."""
        os.stat(_NAME, dir_fd=self._directory)

    def spent(self, call: Callable[["_Side"], None], requests: int) -> float:
        """Return the processor seconds of the server for a batch."""
        before = processes.cpu_seconds(self._pids)
        for _ in range(requests):
            call(self)
        return processes.cpu_seconds(self._pids) - before

    def close(self) -> None:
        os.close(self._file)
        os.close(self._directory)


@contextmanager
def _served(checkout: Path, base: Path, name: str) -> Iterator[_Side]:
    """Mount by the program in *checkout* during the block."""
    mountpoint = base / name
    mountpoint.mkdir()
    python = checkout / ".venv" / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"{checkout} has no .venv")
    places = ("--source", str(base / "source"), "--mountpoint", str(mountpoint))
    process = subprocess.Popen(
        [str(python), "-m", "passthrough", *places, *_OPTIONS],
        cwd=checkout,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + _START_S
        while not is_mounted(mountpoint):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{checkout} does not mount")
            time.sleep(_POLL_S)
        os.stat(mountpoint)
        with closing(_Side(mountpoint, process.pid)) as side:
            yield side
    finally:
        if is_mounted(mountpoint):
            unmount(mountpoint)
        process.wait()


def _ratio(ours: _Side, other: _Side, call: Callable[[_Side], None], requests: int) -> list[float]:
    """Return both sides' microseconds of a call in one round, and the ratio."""
    sums = [0.0, 0.0]
    for number in range(_BATCHES):
        sides = [(0, ours), (1, other)]
        for index, side in sides[:: -1 if number % 2 else 1]:
            sums[index] += side.spent(call, requests)
    calls_per_us = _BATCHES * requests / 1e6
    return [sums[0] / calls_per_us, sums[1] / calls_per_us, sums[0] / sums[1]]


def compare(other: Path, requests: int) -> None:
    """Compare and print the results; for process 1 of namespaces of its own."""
    with TemporaryDirectory() as directory, ExitStack() as stack:
        base, watch = Path(directory), machine.Watch()
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[0]})  # for the servers, which inherit it
        (base / "source").mkdir()
        (base / "source" / _NAME).touch()
        sides = [
            stack.enter_context(_served(checkout, base, name))
            for checkout, name in ((REPOSITORY, "ours"), (other, "other"))
        ]
        for place, processor in (("same", processors[0]), ("other", processors[-1])):
            os.sched_setaffinity(0, {processor})
            _show(f"fstat, {place} processor", sides, _Side.attributes, requests)
            _show(f"stat, {place} processor", sides, _Side.look_up, requests)
        load, stolen = os.getloadavg()[0], watch.shares()[1]
        sys.stdout.write(f"load {load:.1f}, stolen {stolen:.0%}\n")


def _show(text: str, sides: Sequence[_Side], call: Callable[[_Side], None], requests: int) -> None:
    """Measure a call, and print the medians of the rounds."""
    rounds = [_ratio(sides[0], sides[1], call, requests) for _ in range(_ROUNDS)]
    ours, others, ratio = map(statistics.median, zip(*rounds, strict=True))
    shown = " ".join(f"{each[2]:.3f}" for each in rounds)
    sys.stdout.write(f"{text}: {ours:.2f} µs, other {others:.2f} µs, {ratio:.3f} ({shown})\n")
    sys.stdout.flush()


def main() -> int:
    """Run the comparison in namespaces of its own; return the exit status."""
    other, *more = sys.argv[1:]
    requests = int(more[0]) if more else _REQUESTS
    if os.getpid() == 1:
        compare(Path(other), requests)
        return 0
    words = [*NAMESPACES, sys.executable, "-m", "benchmarks.builds", other, str(requests)]
    return subprocess.run(words, cwd=REPOSITORY, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
