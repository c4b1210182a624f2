"""Runs every line for one subject, in a child process that may hang.

Only the child touches the mount. It reports through a pipe. If a line does not end, the parent
kills the subject's processes, so that the child's call fails, and then the child.
"""

import functools
import gc
import os
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import msgspec

from benchmarks import data, metadata, processes, subjects, work
from benchmarks.lines import Line, Site
from benchmarks.plan import Plan
from benchmarks.report import Sample

LINES = (*metadata.LINES, *data.LINES, *work.LINES)

# Far longer than any line takes, even with the slowest peer on a loaded machine.
_LIMIT_S = 300.0

Outcome = tuple[str, Sample | str]
"""A line's name, with its sample or the cause of its failure."""


def chosen(plan: Plan) -> list[Line]:
    """Return the lines that *plan* asks for."""
    return [
        line
        for line in LINES
        if any(p == line.group or fnmatchcase(line.name, p) for p in plan.lines)
    ]


def through(plan: Plan, at: Site) -> Iterator[Outcome]:
    """Run the chosen lines in *at*; the others still run after one has failed.

    A line may kill its process: a map of a file that cannot be read or written gives SIGBUS. Then
    another process runs the lines after that one. Lines of real work cannot go on without it.
    """
    left = chosen(plan)
    while left:
        for result in in_child(functools.partial(_run_lines, plan, left, at)):
            if isinstance(result, str):
                yield from ((line.name, result) for line in left)
                return
            left = left[1:]
            yield result["name"], result.get("failure") or Sample(**result["sample"])
        if left:
            fatal, *left = left
            yield fatal.name, "the measuring process ended in this line"
            if fatal.group == "work":
                yield from ((line.name, f"cannot run after {fatal.name!r}") for line in left)
                return


def in_child(
    action: Callable[[Callable[[Any], None]], object], limit_s: float = _LIMIT_S
) -> Iterator[Any]:
    """Run *action* in a child process, and yield each value that it sends.

    *action* is called with the function that sends. If the child fails, the last value is a string:
    a traceback, or the time limit. If the child sends nothing for *limit_s*, the parent kills it
    and the processes that serve mounts.
    """
    ours, childs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        _child(action, childs)
    os.close(childs)
    hung = False
    with open(ours, "rb", buffering=0) as pipe:
        pending = b""
        while True:
            if not select.select([pipe], [], [], limit_s)[0]:
                hung = True
                subjects.kill()
                os.kill(pid, 9)
                break
            received = pipe.read(1 << 16)
            if not received:
                break
            *lines, pending = (pending + received).split(b"\n")
            yield from map(msgspec.json.decode, lines)
    os.waitpid(pid, 0)
    if hung:
        yield f"no end within {limit_s:g} s"


def _child(action: Callable[[Callable[[Any], None]], object], pipe: int) -> None:
    """Run *action* and end."""
    gc.disable()

    def send(value: object) -> None:
        os.write(pipe, msgspec.json.encode(value) + b"\n")

    try:
        action(send)
    except BaseException:  # noqa: BLE001 - a fork must not return into its parent's code
        send(traceback.format_exc())
    finally:
        sys.stderr.flush()
        os._exit(0)


def _run_lines(plan: Plan, wanted: Sequence[Line], at: Site, send: Callable[[Any], None]) -> None:
    for line in wanted:
        if line.group != "work":
            send(_attempt(line, at, plan.least_s))
    if any(line.group == "work" for line in wanted):
        for line in work.LINES:
            outcome = _attempt(line, at, least_s=0)
            if line in wanted:
                send(outcome)


def _attempt(line: Line, at: Site, least_s: float) -> dict[str, Any]:
    try:
        sample = _measure(line, at, least_s)
    except subprocess.CalledProcessError as error:
        output = error.stderr.decode(errors="replace").strip()
        return {"name": line.name, "failure": f"{error}: {output}"}
    except Exception as error:  # noqa: BLE001 - any error is a failure of this line alone
        return {"name": line.name, "failure": f"{type(error).__name__}: {error}"}
    return {"name": line.name, "sample": sample}


def _measure(line: Line, at: Site, least_s: float) -> Sample:
    """Return the sample of one line.

    The servers' processor time includes what they still have to do after the last operation, such
    as the RELEASE of closed files.
    """
    sums = _Meter(0, 0, 0, 0)
    seconds, operations = 0.0, 0
    while not operations or seconds < least_s:
        line.prepare(at)
        before = _Meter.read(at)
        began = time.perf_counter()
        operations += line.run(at)
        seconds += time.perf_counter() - began
        if seconds >= least_s:
            processes.settle(at.servers)
        sums = sums.plus_since(before, _Meter.read(at))
    return Sample(
        seconds=seconds / operations,
        cpu_seconds=sums.cpu / operations,
        requests=None if at.requests() is None else sums.requests / operations,
        user_seconds=sums.user / operations,
        system_seconds=sums.system / operations,
    )


class _Meter(NamedTuple):
    """Requests that a subject has got so far, and the processor time of its servers."""

    requests: float
    cpu: float
    user: float
    system: float

    @classmethod
    def read(cls, at: Site) -> "_Meter":
        cpu = processes.cpu_seconds(at.servers)
        return cls(at.requests() or 0, cpu, *processes.user_and_system(at.servers))

    def plus_since(self, before: "_Meter", now: "_Meter") -> "_Meter":
        """Return this sum and the difference of two readings."""
        parts = zip(self, before, now, strict=True)
        return _Meter(*(total + later - earlier for total, earlier, later in parts))
