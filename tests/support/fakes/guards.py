"""Two guards and a worker without a core, as passthrough/worker/standby.py runs them.

Real ones share a table of descriptors. Here each one has a copy, which the plugin cannot tell.
"""

import os
import select
import signal
import struct
import time
from collections.abc import Callable
from typing import NoReturn

from passthrough.worker import control
from passthrough.worker.control import Death, End
from passthrough.worker.handover import KEEP

CRASH = signal.SIGSEGV
"""A worker that is killed by this signal crashes while it serves a LOOKUP."""
LOOKUP, NODEID = 1, 7
MOST_DEATHS = 4
"""After so many deaths the service is given up."""


def stand_by(control_fd: int, serve: Callable[[bool], object]) -> int:
    """Guard workers that run *serve*; its argument is true for the first worker.

    Returns:
        The exit status of this process, which is the first guard.
    """
    page = control.Page(control_fd)
    page.record_fd = 1  # another program can take over
    page.set_guard(0, os.getpid(), control.NO_FD)
    worker = _make_worker(page, serve)
    first = os.getpid()
    if (pid := os.fork()) == 0:
        page.set_guard(1, os.getpid(), control.NO_FD)
        _wait_for_end(first)
        page.set_guard(0, 0, control.NO_FD)
        os._exit(_guard(page, page.worker_pid, serve))
    page.set_guard(1, pid, control.NO_FD)
    return _guard(page, worker, serve)


def take_over(
    before_fd: int,
    control_fd: int,
    report: Callable[[control.Page], object],
    serve: Callable[[bool], object],
) -> int:
    """Take over from the guards with the page *before_fd*; return the exit status.

    *report* is called once a worker is ready, and notes in the page that the worker waits. It
    serves once standard input has KEEP, and if that ends before, the other guards go on.
    """
    before, page = control.Page(before_fd), control.Page(control_fd)
    guards = before.state().guard_pids
    for pid in guards[::-1]:
        os.kill(pid, signal.SIGSTOP)
    os.kill(before.worker_pid, signal.SIGKILL)
    page.take_history(before)
    page.record_fd = 1
    page.set_guard(0, os.getpid(), control.NO_FD)
    gate, opened = os.pipe()
    guard_fd = os.pidfd_open(os.getpid())

    def serve_once_kept(_: bool) -> None:
        select.select([gate, guard_fd], [], [])
        if not before.is_replaced:
            os._exit(0)
        serve(False)

    worker = _make_worker(page, serve_once_kept)
    report(page)
    if os.read(0, 1) != KEEP:
        os.kill(worker, signal.SIGKILL)
        for pid in guards:
            os.kill(pid, signal.SIGCONT)
        return 1
    before.end(End.REPLACED, 0)
    os.write(opened, b"1")
    page.settle(page.generation, 1)
    page.waits = False
    for pid in guards:
        os.kill(pid, signal.SIGKILL)
    return _guard(page, worker, serve)


def _guard(page: control.Page, worker: int, serve: Callable[[bool], object]) -> int:
    """Replace workers that die, until one has ended in order; return the exit status."""
    while True:
        _wait_for_end(worker)
        try:
            status = os.waitpid(worker, 0)[1]
        except ChildProcessError:  # a guard that is dead has made it
            status = control.STATUS_UNKNOWN
        if page.state().ended:
            return page.state().end_status
        crash = (LOOKUP, NODEID) if status & 0x7F == CRASH else (0, 0)
        page.add_death(Death(time.time(), time.monotonic(), worker, status, *crash))
        if page.state().deaths == MOST_DEATHS:
            page.end(End.GIVEN_UP, 1)
            return 1
        worker = _make_worker(page, serve)


def _make_worker(page: control.Page, serve: Callable[[bool], object]) -> int:
    generation = page.generation + 1
    if (pid := os.fork()) == 0:
        _work(page, generation, serve)
    while page.generation != generation and not os.waitid(
        os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
    ):
        time.sleep(0.001)
    return pid


def _work(page: control.Page, generation: int, serve: Callable[[bool], object]) -> NoReturn:
    page.worker_pid = os.getpid()
    struct.pack_into("<I", page.memory, control.WORD_AT, generation)
    serve(generation == 1)
    page.end(End.ORDERLY, 0)
    os._exit(0)


def _wait_for_end(pid: int) -> None:
    try:
        pid_fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([pid_fd], [], [])
    os.close(pid_fd)
