"""predecessor.py: the end of another program's worker. test_upgrade.py has the rest."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from passthrough.session.kernel import Begun
from passthrough.session.negotiation import Offer
from passthrough.worker import control, predecessor, record
from passthrough.worker.predecessor import Predecessor

REPOSITORY = Path(__file__).resolve().parents[3]
# Makes the first process of a pid namespace, in the group that the argument names. That process
# does not end before a zombie of its namespace is reaped, pid_namespaces(7).
STUCK = """
import os, signal, sys
from passthrough.linux import privileges
privileges.unshare(0x20000000)  # CLONE_NEWPID
first = os.fork()
if not first:
    signal.pause()
zombie = os.fork()
if not zombie:
    os._exit(0)
os.setpgid(first, int(sys.argv[1]))
os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
print(first, flush=True)
sys.stdin.read()
os.kill(first, signal.SIGKILL)
for pid in (zombie, first):
    os.waitpid(pid, 0)
"""
# Makes room by SIGUSR1, when another worker has just taken its place.
WORKER = """
import os, signal, sys
from passthrough.worker import control
page = control.Page(int(sys.argv[1]))
def retire(*_):
    page.worker_pid = int(sys.argv[2])
    os._exit(control.RETIRED)
signal.signal(signal.SIGUSR1, retire)
print(os.getpid(), flush=True)
while True:
    signal.pause()
"""


@contextmanager
def running(code: str, *arguments: int, group: int | None = None, fd: int = 2) -> Iterator[int]:
    """Run a program that is ready once it has printed a process id, and yield that."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdin=-1,
        stdout=-1,
        process_group=group,
        pass_fds=[fd],
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            if group is not None:
                process.kill()


@contextmanager
def guard(page: control.Page) -> Iterator[int]:
    """Run a guard that has a record, and yield its process id."""
    memory_fd = os.memfd_create("memory", os.MFD_ALLOW_SEALING)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(memory_fd, fcntl.F_ADD_SEALS, seals)
    begun = Begun(
        offered=Offer(7, 45, 131072, 1 << 40),
        minor=45,
        flags=1 << 33,
        without_passthrough="",
        memory=(memory_fd,) * 4,
    )
    page.record_fd = record.store(begun, "")
    fds = [memory_fd, page.record_fd]
    with subprocess.Popen(["sleep", "inf"], pass_fds=fds, process_group=0) as process:
        page.set_guard(0, process.pid, control.NO_FD)
        try:
            yield process.pid
        finally:
            process.kill()
            for fd in fds:
                os.close(fd)


@pytest.mark.parametrize("serves", [True, False])
def test_a_worker_that_does_not_end_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, *, serves: bool
) -> None:
    """It has taken its place after the other program named the worker before it."""
    monkeypatch.setattr(predecessor, "_OTHERS_LIMIT_S", 0.1)
    monkeypatch.setattr(predecessor, "_KILL_LIMIT_S", 0.5)
    with ExitStack() as stack:
        control_fd = control.make()
        stack.callback(os.close, control_fd)
        page = control.Page(control_fd)
        stack.callback(page.close)
        group = stack.enter_context(guard(page))
        stuck = stack.enter_context(running(STUCK, group))
        worker = running(WORKER, control_fd, stuck if serves else 0, group=group, fd=control_fd)
        page.worker_pid = stack.enter_context(worker)
        before = Predecessor(group, control_fd)
        stack.callback(before.dismiss)
        before.examine()
        before.stop()
        if serves:
            with pytest.raises(OSError, match=f"worker {stuck} of the other program does not end"):
                before.retire()
        else:
            before.retire()
