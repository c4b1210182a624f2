"""One subject through every line, in a process that may hang.

A child does everything that touches the mount, and reports by a pipe. Whoever waits for it kills
the subject when a line does not end, which fails the child's call and lets it go on.
"""

import gc
import json
import os
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from benchmarks import data, metadata, processes, subjects, work
from benchmarks.lines import Line, Place
from benchmarks.plan import Plan
from benchmarks.report import Sample

LINES = (*metadata.LINES, *data.LINES, *work.LINES)

# Far beyond what any line takes, on a loaded machine and with the slowest peer.
_LIMIT_S = 300.0

Outcome = tuple[str, Sample | str]
"""A line's name, and what it gave or why it failed."""


def chosen(plan: Plan) -> list[Line]:
    """The lines that *plan* asks for."""
    return [
        line for line in LINES if any(fnmatchcase(line.name, pattern) for pattern in plan.lines)
    ]


def through(plan: Plan, at: Place) -> Iterator[Outcome]:
    """Run the chosen lines at *at*; one that fails does not keep the others from running."""
    wanted = chosen(plan)
    waiting = [line.name for line in wanted]
    for said in in_child(lambda tell: _run_lines(plan, wanted, at, tell)):
        if isinstance(said, str):
            yield from ((name, said) for name in waiting)
            return
        waiting.remove(said["name"])
        yield said["name"], said.get("failure") or Sample(said["seconds"], said["cpu_seconds"])
    yield from ((name, "the measuring process ended before it") for name in waiting)


def in_child(
    action: Callable[[Callable[[Any], None]], object], limit_s: float = _LIMIT_S
) -> Iterator[Any]:
    """Run *action* in a child; gives what it tells, by the function that it is called with.

    The last thing given is a string if the child did not do well: a traceback, or that it told
    nothing for *limit_s*, whereupon it was ended, with the processes that served it.
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
            yield from map(json.loads, lines)
    os.waitpid(pid, 0)
    if hung:
        yield f"no end within {limit_s:g} s"


def _child(action: Callable[[Callable[[Any], None]], object], pipe: int) -> None:
    """Run *action* and end."""
    gc.disable()

    def tell(value: object) -> None:
        os.write(pipe, json.dumps(value).encode() + b"\n")

    try:
        action(tell)
    except BaseException:  # noqa: BLE001 - a fork must not return into its parent's code
        tell(traceback.format_exc())
    finally:
        sys.stderr.flush()
        os._exit(0)


def _run_lines(plan: Plan, wanted: Sequence[Line], at: Place, tell: Callable[[Any], None]) -> None:
    for line in wanted:
        if line.group != "work":
            tell(_attempt(line, at, plan.least_s))
    if any(line.group == "work" for line in wanted):
        for line in work.LINES:
            outcome = _attempt(line, at, least_s=0)
            if line in wanted:
                tell(outcome)


def _attempt(line: Line, at: Place, least_s: float) -> dict[str, Any]:
    try:
        seconds, cpu_seconds = _measure(line, at, least_s)
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode(errors="replace").strip()
        return {"name": line.name, "failure": f"{error}: {words}"}
    except Exception as error:  # noqa: BLE001 - whatever it is, the line has failed and says so
        return {"name": line.name, "failure": f"{type(error).__name__}: {error}"}
    return {"name": line.name, "seconds": seconds, "cpu_seconds": cpu_seconds}


def _measure(line: Line, at: Place, least_s: float) -> tuple[float, float]:
    """Seconds and the servers' processor seconds for each operation."""
    spent = cpu = 0.0
    operations = 0
    while not operations or spent < least_s:
        line.prepare(at)
        cpu_before = processes.cpu_seconds(at.servers)
        before = time.perf_counter()
        operations += line.run(at)
        spent += time.perf_counter() - before
        cpu += processes.cpu_seconds(at.servers) - cpu_before
    return spent / operations, cpu / operations
