"""A keeper for workers: it mounts, starts the process and holds the other ends of its pipes."""

import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from passthrough.options.table import Requested
from passthrough.worker import fuse_mount
from passthrough.worker.handover import Handover, Report, decode_report, encode
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
        self.fuse_fd = fuse_mount.mount(mountpoint, resolved(self.config))
        self.source_fd = os.open(source, os.O_PATH | os.O_DIRECTORY)
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def handover(self) -> Handover:
        """Return the hand-over for a worker."""
        return Handover(
            volume="demo", config=self.config, fuse_fd=self.fuse_fd, source_fd=self.source_fd
        )

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
            )
        self.processes.append(process)
        assert process.stdin is not None
        process.stdin.write(line)
        return process

    def serve(self, within: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until it reports that it serves."""
        process = self.start(encode(self.handover), (self.fuse_fd, self.source_fd), within)
        assert report_of(process).serving, self.log.read_text()
        return process

    def close(self) -> None:
        """Kill the workers, and close the descriptors of the mount."""
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
        os.close(self.fuse_fd)
        os.close(self.source_fd)


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
