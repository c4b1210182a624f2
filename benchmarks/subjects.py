"""The subjects of a comparison: mounts and unmounts them.

This process only mounts, and reads the table of mounts. It never calls into a mounted file system,
so a file system that hangs cannot block the run.
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
_SFTP_SERVER = "/usr/lib/openssh/sftp-server"
_RCLONE = "rclone mount --config= --cache-dir={cache}"
# Names with one word before the slash are modes of one program.
KNOWN_PEERS = {
    "bindfs": Peer("bindfs {source} {mountpoint}"),
    "bindfs/multithreaded": Peer("bindfs --multithreaded {source} {mountpoint}"),
    "mergerfs": Peer("mergerfs {source} {mountpoint}"),
    "passthrough_hp": Peer("passthrough_hp {source} {mountpoint}"),
    "passthrough_hp/single": Peer("passthrough_hp --single {source} {mountpoint}"),
    "rclone": Peer(f"{_RCLONE} {{source}} {{mountpoint}}"),
    "rclone/writes": Peer(f"{_RCLONE} --vfs-cache-mode=writes {{source}} {{mountpoint}}"),
    # sshfs appends ssh's arguments to ssh_command. The shell ignores them, and starts the server
    # that sshd would start: no network and no encryption.
    "sshfs": Peer(
        f'sshfs -o "ssh_command=sh -c {_SFTP_SERVER}" local:{{source}} {{mountpoint}}',
        needs=(_SFTP_SERVER,),
    ),
}

_START_S, _END_S, _POLL_S = 20.0, 10.0, 0.005


class SubjectError(Exception):
    """A subject does not mount or does not end; the text names it, with its output."""


class Directories(NamedTuple):
    """The directories of a run."""

    source: Path
    mountpoint: Path
    scratch: Path


class Subject(NamedTuple):
    """A file system to measure. The bare directory has no command."""

    name: str
    command: tuple[str, ...]
    options: Mapping[str, str]

    def with_options(self, **more: str) -> "Subject":
        """Return this subject with more options; for passfs only."""
        return self._replace(options={**self.options, **more})

    def words(self, at: Directories, cache: str) -> list[str]:
        """Return the command line that mounts; *cache* is an empty directory."""
        places = {"source": str(at.source), "mountpoint": str(at.mountpoint), "cache": cache}
        options = [w for key, value in self.options.items() for w in ("-o", f"{key}={value}")]
        return [word.format(**places) for word in self.command] + options


def subjects(plan: Plan) -> list[Subject]:
    """Return the subjects of *plan*, the bare directory first."""
    own = (sys.executable, "-m", "passthrough", "--source", "{source}", "--mountpoint")
    return [
        Subject(BARE, (), {}),
        *(Subject(n, (*own, "{mountpoint}"), p.options) for n, p in plan.passfs.items()),
        *(Subject(n, tuple(shlex.split(p.command)), {}) for n, p in plan.peers.items()),
    ]


@contextmanager
def mounted(subject: Subject, at: Directories) -> Iterator[list[int]]:
    """Mount *subject* for the length of a block, and yield the processes that it has started.

    Raises:
        SubjectError: it does not mount, or its processes do not end after the unmount.
    """
    if not subject.command:
        yield []
        return
    before = set(processes.running())
    with (
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryDirectory(prefix="cache-", dir=at.scratch) as cache,
    ):
        try:
            process = subprocess.Popen(
                subject.words(at, cache),
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # As peers that go into the background do. The kernel shares processors among
                # sessions (sched(7), autogroup), so a server in the caller's session would differ.
                start_new_session=True,
            )
        except OSError as error:
            raise SubjectError(f"{subject.name} cannot be started: {error}") from error
        try:
            _wait_until_served(subject, process, at, output)
            # Not only those with /dev/fuse open: sshfs hands its requests to an SFTP server.
            yield [pid for pid in processes.running() if pid not in before]
        finally:
            _take_down(process, at.mountpoint)
        if _wait_until_gone(process):
            raise SubjectError(f"{subject.name} did not end by itself{_text(output)}")


def is_mounted(target: Path) -> bool:
    """Return whether *target* is a mount point."""
    return any(entry.target == os.fsencode(target) for entry in mountinfo.read())


def _wait_until_served(
    subject: Subject, process: subprocess.Popen[bytes], at: Directories, output: IO[bytes]
) -> None:
    deadline = time.monotonic() + _START_S
    while not is_mounted(at.mountpoint):
        # A program that goes into the background mounts first. So one that has ended without a
        # mount has failed, even with exit status 0.
        if process.poll() is not None and not is_mounted(at.mountpoint):
            raise SubjectError(f"{subject.name} does not mount{_text(output)}")
        if time.monotonic() > deadline:
            raise SubjectError(f"{subject.name} has not mounted in {_START_S:g} s{_text(output)}")
        time.sleep(_POLL_S)
    try:  # in a child process, which can be killed if the file system does not answer
        subprocess.run(["stat", at.mountpoint], check=True, capture_output=True, timeout=_START_S)
    except subprocess.SubprocessError:
        raise SubjectError(f"{subject.name} mounts but does not answer{_text(output)}") from None


def _take_down(process: subprocess.Popen[bytes], mountpoint: Path) -> None:
    with contextlib.suppress(OSError):  # the mount may have ended with its process
        while is_mounted(mountpoint):
            unmount(mountpoint)
    if process.poll() is None and not processes.serving():
        process.terminate()


def _wait_until_gone(process: subprocess.Popen[bytes]) -> bool:
    """Wait for the processes to end, kill them after 10 s, and return whether that was needed."""
    deadline = time.monotonic() + _END_S
    while process.poll() is None or processes.serving():
        if time.monotonic() > deadline:
            kill()
            process.kill()
            process.wait()
            return True
        time.sleep(_POLL_S)
    return False


def kill() -> None:
    """Kill all processes that serve a mount, so that callers of the mount get an error.

    Raises:
        RuntimeError: this is not process 1 of its namespace: it may see processes of others.
    """
    if os.getpid() != 1:
        raise RuntimeError("not process 1 of a PID namespace: the processes may not be its own")
    killed = set[int]()
    while left := set(processes.serving()) - killed:  # a guard may have made another process
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        killed |= left


def _text(output: IO[bytes]) -> str:
    output.seek(0)
    text = output.read().decode(errors="replace").strip()
    return f": {text}" if text else ""
