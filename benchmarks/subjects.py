"""What is compared, and how each is mounted and unmounted.

Only mounting, and looking at the table of mounts: nothing here calls into a mounted file system, so
that one which hangs cannot hold the run.
"""

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from benchmarks import processes
from benchmarks.plan import BARE, Peer, Plan
from passthrough.linux import mountinfo
from passthrough.worker.fuse_mount import unmount

REPOSITORY = Path(__file__).resolve().parents[1]
KNOWN_PEERS = {
    "bindfs": Peer("bindfs {source} {mountpoint}"),
    "mergerfs": Peer("mergerfs {source} {mountpoint}"),
}

_START_S, _END_S, _LOOK_S = 20.0, 10.0, 0.005


class SubjectError(Exception):
    """A subject does not mount, or does not go; the text says which, and what it wrote."""


class Directories(NamedTuple):
    """Where a run happens."""

    source: Path
    mountpoint: Path
    scratch: Path


class Subject(NamedTuple):
    """Something to measure; the bare directory has no command."""

    name: str
    command: tuple[str, ...]
    options: Mapping[str, str]

    def with_options(self, **more: str) -> "Subject":
        """The same with more options; for passfs only."""
        return self._replace(options={**self.options, **more})

    def words(self, at: Directories) -> list[str]:
        """The command line that mounts."""
        places = {"source": str(at.source), "mountpoint": str(at.mountpoint)}
        options = [w for key, value in self.options.items() for w in ("-o", f"{key}={value}")]
        return [word.format(**places) for word in self.command] + options


def subjects(plan: Plan) -> list[Subject]:
    """Everything that *plan* compares, the bare directory first."""
    own = (sys.executable, "-m", "passthrough", "--source", "{source}", "--mountpoint")
    return [
        Subject(BARE, (), {}),
        *(Subject(n, (*own, "{mountpoint}"), p.options) for n, p in plan.passfs.items()),
        *(Subject(n, tuple(shlex.split(p.command)), {}) for n, p in plan.peers.items()),
    ]


@contextmanager
def mounted(subject: Subject, at: Directories) -> Iterator[list[int]]:
    """Mount for the length of a block; gives the processes that serve.

    Raises:
        SubjectError: it does not mount, or its processes do not end when it is unmounted.
    """
    if not subject.command:
        yield []
        return
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                subject.words(at),
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            raise SubjectError(f"{subject.name} cannot be started: {error}") from error
        try:
            _wait_until_served(subject, process, at, said)
            yield processes.serving()
        finally:
            _take_down(process, at.mountpoint)
        if _wait_until_gone(process):
            raise SubjectError(f"{subject.name} did not end by itself{_words(said)}")


def is_mounted(target: Path) -> bool:
    """Whether anything is mounted there."""
    return any(entry.target == os.fsencode(target) for entry in mountinfo.read())


def _wait_until_served(
    subject: Subject, process: subprocess.Popen[bytes], at: Directories, said: IO[bytes]
) -> None:
    deadline = time.monotonic() + _START_S
    while not is_mounted(at.mountpoint):
        # A program that goes into the background has mounted before; so it was no success either.
        if process.poll() is not None and not is_mounted(at.mountpoint):
            raise SubjectError(f"{subject.name} does not mount{_words(said)}")
        if time.monotonic() > deadline:
            raise SubjectError(f"{subject.name} has not mounted in {_START_S:g} s{_words(said)}")
        time.sleep(_LOOK_S)
    try:  # by another process, which can be killed if there is no answer
        subprocess.run(["stat", at.mountpoint], check=True, capture_output=True, timeout=_START_S)
    except subprocess.SubprocessError:
        raise SubjectError(f"{subject.name} mounts and does not answer{_words(said)}") from None


def _take_down(process: subprocess.Popen[bytes], mountpoint: Path) -> None:
    with contextlib.suppress(OSError):  # it may be gone already, with whoever served it
        while is_mounted(mountpoint):
            unmount(mountpoint)
    if process.poll() is None and not processes.serving():
        process.terminate()


def _wait_until_gone(process: subprocess.Popen[bytes]) -> bool:
    """Wait for the processes to end, end them otherwise; whether that was necessary."""
    deadline = time.monotonic() + _END_S
    while process.poll() is None or processes.serving():
        if time.monotonic() > deadline:
            kill()
            process.kill()
            process.wait()
            return True
        time.sleep(_LOOK_S)
    return False


def kill() -> None:
    """End whoever serves anything; whoever waits for an answer gets an error.

    Raises:
        RuntimeError: this is not the first process of its namespace, which sees its own only.
    """
    if os.getpid() != 1:
        raise RuntimeError("these might be anybody's processes")
    for pid in processes.serving():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)


def _words(said: IO[bytes]) -> str:
    said.seek(0)
    text = said.read().decode(errors="replace").strip()
    return f": {text}" if text else ""
