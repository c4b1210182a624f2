"""A keeper for workers: it mounts, starts the process and holds the other ends of its pipes."""

import contextlib
import copy
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from passthrough.options.choices import Standby
from passthrough.options.table import Requested
from passthrough.worker import control, fuse_mount
from passthrough.worker.handover import (
    KEEP,
    Handover,
    Predecessor,
    Report,
    decode_report,
    encode,
)
from tests.support.tools.options import resolved

REPOSITORY = Path(__file__).resolve().parents[3]
LIMIT_S = 30.0


class Keeper:
    """A mount of *source*, and its workers: processes that run *module*."""

    def __init__(
        self,
        source: Path,
        mountpoint: Path,
        log: Path,
        config: Requested | None = None,
        module: str = "passthrough.worker.process",
    ) -> None:
        self.mountpoint = mountpoint
        self.log = log
        self.config = config or Requested()
        self.module = module
        effective = resolved(self.config)
        self.fuse_fd = fuse_mount.mount(mountpoint, effective)
        self.source_fd = os.open(source, os.O_PATH | os.O_DIRECTORY)
        self.control_fd = control.make() if effective.standby is Standby.ON else None
        self.processes: list[subprocess.Popen[bytes]] = []
        self.after: Keeper | None = None

    @property
    def group(self) -> int:
        """Return the process group of the first process."""
        return self.processes[0].pid

    @property
    def handover(self) -> Handover:
        """Return the hand-over for a worker."""
        return Handover(
            volume="demo",
            config=self.config,
            fuse_fd=self.fuse_fd,
            source_fd=self.source_fd,
            control_fd=self.control_fd,
        )

    @property
    def passed_fds(self) -> list[int]:
        """Return the descriptors in the hand-over."""
        given = (self.fuse_fd, self.source_fd, self.control_fd)
        return [fd for fd in given if fd is not None]

    @property
    def state(self) -> control.State:
        """Return the content of the control page; the worker has a standby."""
        assert self.control_fd is not None
        return control.read(self.control_fd)

    @property
    def told(self) -> list[str]:
        """Return the lines of the log above DEBUG, as a volume without options has them."""
        return [line for line in self.log.read_text().splitlines() if not line.startswith("DEBUG ")]

    @property
    def worker_pid(self) -> int:
        """Return the process that serves: the last one started, or with a standby a clone."""
        return self.processes[-1].pid if self.control_fd is None else self.state.worker_pid

    def start(
        self, line: bytes, pass_fds: Sequence[int], within: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a worker and write *line* to its standard input.

        *within* is a command that executes the worker's command, which follows it.
        """
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [*within, sys.executable, "-m", self.module],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=pass_fds,
                bufsize=0,
                process_group=0,
            )
        self.processes.append(process)
        assert process.stdin is not None
        process.stdin.write(line)
        return process

    def serve(self, within: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until it reports that it serves."""
        process = self.start(encode(self.handover), self.passed_fds, within)
        assert report_of(process).serving, self.log.read_text()
        return process

    def start_next(
        self, module: str = "passthrough.worker.process", within: Sequence[str] = ()
    ) -> "Keeper":
        """Start another program for the mount; return its keeper, which is closed with this one."""
        assert self.control_fd is not None
        after = copy.copy(self)
        after.module, after.processes = module, []
        self.after = after
        after.fuse_fd, after.source_fd = os.dup(self.fuse_fd), os.dup(self.source_fd)
        after.control_fd = control.make()
        after.log = self.log.with_suffix(f".{time.monotonic_ns()}")
        predecessor = Predecessor(group=self.group, control_fd=self.control_fd)
        handover = msgspec.structs.replace(after.handover, source_fd=-1, predecessor=predecessor)
        fds = (after.fuse_fd, after.control_fd, self.control_fd)
        after.start(encode(handover), fds, within)
        return after

    def keep(self) -> None:
        """Have the program serve that `start_next` has started, and wait until it does."""
        stdin = self.processes[-1].stdin
        assert stdin is not None
        stdin.write(KEEP)
        until = time.monotonic() + LIMIT_S
        while not 0 < self.state.settled == self.state.generation:
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.001)

    def close(self) -> None:
        """Kill the workers, and close the descriptors of the mount."""
        if self.after is not None:
            self.after.close()
        others = set[int]()
        if self.control_fd is not None:
            own = {process.pid for process in self.processes}
            others = {*self.state.guard_pids, self.state.worker_pid} - {0, *own}
            _signal(others, signal.SIGSTOP)  # no guard makes another process
            os.close(self.control_fd)
        for process in self.processes:
            process.kill()
            process.wait()
        _kill(others)
        for process in self.processes:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
        os.close(self.fuse_fd)
        os.close(self.source_fd)


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _kill(pids: set[int]) -> None:
    """Kill guards and workers, and wait for their ends; they become orphans of this process."""
    _signal(pids, signal.SIGKILL)
    until = time.monotonic() + LIMIT_S
    while pids and time.monotonic() < until:
        for pid in list(pids):
            with contextlib.suppress(ChildProcessError):  # its parent is to be reaped first
                os.waitpid(pid, os.WNOHANG)
            if not Path(f"/proc/{pid}").exists():
                pids.remove(pid)


def report_of(process: subprocess.Popen[bytes]) -> Report:
    """Read the report of a worker."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], LIMIT_S)[0]
    return decode_report(process.stdout.readline())


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Wait for the end; return the exit status and the rest of standard output."""
    assert process.stdout is not None
    status = process.wait(LIMIT_S)
    return status, process.stdout.read()


def on_mount(*words: str) -> str:
    """Run a program on a mount, and return its output.

    If the mount hangs, the program can be killed; a thread of this process could not.
    """
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    return done.stdout
