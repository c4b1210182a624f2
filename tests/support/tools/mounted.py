"""A passthrough mount for the length of a block, served by the stand-alone command.

A file system that hangs must fail a test, not the whole run, and the process that hangs cannot
help itself: a page fault on a mapped file holds the interpreter's lock. So a guard watches from
outside: this very file, run as a program. It aborts the FUSE connection when an armed time limit
passes, which makes every waiting call fail, and when its standard input ends while the mount is
still there, which is what remains of a test run that was killed.
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

# fusectl is mounted in a namespace of the abort's own where the machine has not mounted it.
ABORT = """
[ -e "/sys/fs/fuse/connections/$1/abort" ] || mount -t fusectl none /sys/fs/fuse/connections
echo 1 > "/sys/fs/fuse/connections/$1/abort"
"""


class MountFailedError(Exception):
    """The mount did not come, did not go, or its process failed; the text has its stderr."""


@dataclass(slots=True)
class Mounted:
    """A served mount: where it is, what lies beneath, and what its process wrote to stderr."""

    source: Path
    mountpoint: Path
    log: Path
    process: subprocess.Popen[bytes]
    guard: subprocess.Popen[bytes]

    @contextlib.contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Abort the connection when the block takes longer than *seconds*."""
        self._tell_guard(f"{seconds}\n")
        try:
            yield
        finally:
            self._tell_guard("0\n")

    def logged(self, offset: int = 0) -> str:
        """Return what the process has written to stderr from byte *offset* on."""
        return self.log.read_bytes()[offset:].decode(errors="replace")

    @property
    def worker_pid(self) -> int:
        """The process that serves: the command's child."""
        command = self.process.pid
        (child,) = Path(f"/proc/{command}/task/{command}/children").read_text().split()
        return int(child)

    def _tell_guard(self, line: str) -> None:
        assert self.guard.stdin is not None
        self.guard.stdin.write(line.encode())
        self.guard.stdin.flush()


@contextlib.contextmanager
def mounted(
    base: Path,
    options: Mapping[str, str],
    descriptors: int | None = None,
    *,
    program: str = "passthrough",
    stdin: int = subprocess.DEVNULL,
) -> Iterator[Mounted]:
    """Serve `base/source` at `base/mount` until the block ends; what is not there is made.

    The process may have as many *descriptors* as that, and not raise the limit. It is *program*, a
    module that takes the same words, and has *stdin*.

    Raises: MountFailedError when the mount does not come up or does not go away on SIGTERM.
    """
    source, mountpoint, log = base / "source", base / "mount", base / "stderr.log"
    source.mkdir(exist_ok=True)
    mountpoint.mkdir(exist_ok=True)
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*limited_to(descriptors), *command(source, mountpoint, options, program)],
            cwd=REPOSITORY,
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
    """Return the words before a command line that give it a limit of open descriptors."""
    if descriptors is None:
        return []
    limit = ["prlimit", f"--nofile={descriptors}:{descriptors}"]
    return [*limit, "setpriv", "--bounding-set", "-sys_resource"]


def device_of(mountpoint: Path) -> str | None:
    """Return the minor device number of the file system mounted at *mountpoint*, if there is one.

    Asks the mount table and never the file system, which may not answer.
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
    """End the process, see that the mount went with it, force both otherwise."""
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
    """Read time limits in seconds from standard input, 0 for none; act when one passes."""
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
    # A terminal's interrupt goes to the whole group; the guard outlives the tests that it guards.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _guard(Path(sys.argv[1]), sys.argv[2])
