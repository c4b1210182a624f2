"""A passthrough mount for the length of a block, served by the stand-alone command.

A file system that hangs must fail one test and not the whole run. A process in a page fault on a
mapped file holds the interpreter's lock, so it cannot watch itself. A second process, the guard,
runs this file as a program. The guard aborts the FUSE connection if a time limit passes, or if the
guard's standard input ends while the mount exists: the test run was killed. Every waiting call then
fails.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
START_LIMIT_S = 20.0
STOP_LIMIT_S = 10.0
POLL_S = 0.01

# If the machine has not mounted fusectl, the script mounts it in its own namespace.
ABORT = """
[ -e "/sys/fs/fuse/connections/$1/abort" ] || mount -t fusectl none /sys/fs/fuse/connections
echo 1 > "/sys/fs/fuse/connections/$1/abort"
"""


class MountFailedError(Exception):
    """The mount did not appear or did not go, or its process failed; the text has its stderr."""


@dataclass(slots=True)
class Mounted:
    """A mount with its source, its process, the guard, and the log of the process's stderr."""

    source: Path
    mountpoint: Path
    log: Path
    process: subprocess.Popen[bytes]
    guard: subprocess.Popen[bytes]

    @contextlib.contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Abort the connection if the block takes longer than *seconds*."""
        self._tell_guard(f"{seconds}\n")
        try:
            yield
        finally:
            self._tell_guard("0\n")

    def logged(self, offset: int = 0) -> str:
        """Return the stderr of the process from byte *offset* on."""
        return self.log.read_bytes()[offset:].decode(errors="replace")

    @property
    def worker_pid(self) -> int:
        """Return the pid of the worker: of the processes below the command, it has no children."""
        return next(pid for pid in _leaves(self.process.pid) if not _is_guard(pid))

    def _tell_guard(self, line: str) -> None:
        assert self.guard.stdin is not None
        self.guard.stdin.write(line.encode())
        self.guard.stdin.flush()


def _leaves(pid: int) -> Iterator[int]:
    below: list[str] = []  # processes.py has the same; the guard's program finds no other module
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            below += (task / "children").read_text().split()
    if not below:
        yield pid
    for child in map(int, below):
        yield from _leaves(child)


def _is_guard(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == "passfs-guard\n"


@contextlib.contextmanager
def mounted(
    base: Path,
    options: Mapping[str, str],
    descriptors: int | None = None,
    *,
    program: str = "passthrough",
    stdin: int = subprocess.DEVNULL,
    tree: Path = REPOSITORY,
) -> Iterator[Mounted]:
    """Serve `base/source` at `base/mount` for the length of the block; missing ones are made.

    *descriptors* limits the open descriptors of the process, which cannot raise the limit.
    *program* is a module with the arguments of `passthrough`, of the source tree *tree*; *stdin*
    becomes its standard input.

    Raises: MountFailedError if the mount does not appear, or does not go on SIGTERM.
    """
    source, mountpoint, log = base / "source", base / "mount", base / "stderr.log"
    source.mkdir(exist_ok=True)
    mountpoint.mkdir(exist_ok=True)
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*limited_to(descriptors), *command(source, mountpoint, options, program)],
            cwd=tree,
            stdin=stdin,
            stderr=stderr,
        )
    try:
        device = _wait_for_mount(process, mountpoint, log)
    except MountFailedError:
        process.kill()
        process.wait()
        _detach(mountpoint)
        raise
    guard = subprocess.Popen(
        [sys.executable, "-I", __file__, str(mountpoint), device], stdin=subprocess.PIPE
    )
    served = Mounted(source, mountpoint, log, process, guard)
    try:
        with served.limited(START_LIMIT_S):
            mountpoint.stat()
        yield served
    finally:
        _stop(served)


def command(
    source: Path, mountpoint: Path, options: Mapping[str, str], program: str = "passthrough"
) -> list[str]:
    """Return the command line that serves *source* at *mountpoint*."""
    places = ["--source", str(source), "--mountpoint", str(mountpoint)]
    pairs = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    return [sys.executable, "-m", program, *places, *pairs]


def limited_to(descriptors: int | None) -> list[str]:
    """Return the words before a command line that limit its open descriptors."""
    if descriptors is None:
        return []
    limit = ["prlimit", f"--nofile={descriptors}:{descriptors}"]
    return [*limit, "setpriv", "--bounding-set", "-sys_resource"]


def device_of(mountpoint: Path) -> str | None:
    """Return the minor device number of the file system at *mountpoint*, or None without a mount.

    Reads the mount table, because the file system may hang.
    """
    wanted = str(mountpoint)
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        fields = line.split()
        if fields[4] == wanted:
            return fields[2].partition(":")[2]
    return None


def _wait_for_mount(process: subprocess.Popen[bytes], mountpoint: Path, log: Path) -> str:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        device = device_of(mountpoint)
        if device is not None:
            return device
        if process.poll() is not None:
            break
        time.sleep(POLL_S)
    message = f"no mount (exit code {process.returncode}); stderr:\n{log.read_text()}"
    raise MountFailedError(message)


def _stop(served: Mounted) -> None:
    """End the process and its mount; if one of them remains, remove it by force and raise."""
    served.process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        served.process.wait(STOP_LIMIT_S)
    orderly = served.process.poll() == 0 and device_of(served.mountpoint) is None
    assert served.guard.stdin is not None
    served.guard.stdin.close()
    served.guard.wait(STOP_LIMIT_S)
    if not orderly:
        code = served.process.poll()
        served.process.kill()
        served.process.wait()
        _detach(served.mountpoint)
        message = f"SIGTERM left exit code {code} and a mount; stderr:\n{served.logged()}"
        raise MountFailedError(message)


def _detach(mountpoint: Path) -> None:
    while device_of(mountpoint) is not None:
        subprocess.run(["umount", "-l", str(mountpoint)], check=True, timeout=STOP_LIMIT_S)


def _abort(device: str) -> None:
    words = ["unshare", "--mount", "sh", "-c", ABORT, "sh", device]
    subprocess.run(words, check=False, timeout=STOP_LIMIT_S)


def _guard(mountpoint: Path, device: str) -> None:
    """Read time limits in seconds from standard input, 0 for none; abort when one passes."""
    limit_s: float | None = None
    while True:
        ready, _, _ = select.select([0], [], [], limit_s)
        if not ready:
            sys.stderr.write(f"{mountpoint}: no answer within {limit_s} s, connection aborted\n")
            _abort(device)
            limit_s = None
            continue
        lines = os.read(0, 4096).split()
        if not lines:
            break
        limit_s = float(lines[-1]) or None
    if device_of(mountpoint) == device:
        _abort(device)
        _detach(mountpoint)


if __name__ == "__main__":
    # Ctrl-C interrupts the whole process group, but the guard must outlive the tests.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _guard(Path(sys.argv[1]), sys.argv[2])
