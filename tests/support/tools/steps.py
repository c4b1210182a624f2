"""A plugin that can be killed at each of its steps, and that starts in milliseconds.

A *step* is a call of a function in `STEPS`, which changes something outside the plugin's memory.
The plugin can be killed at the *crash point* before each step. Nothing changes between two crash
points, unless another process acts on a step. Such a step has a second crash point right after it.

The *parent* of these plugins is a fork server that has loaded all modules of plugin and workers. It
runs passthrough/worker/forkserver.py over a socket with a name.
"""

import inspect
import json
import os
import select
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from passthrough.linux import kernel_features, syscalls
from passthrough.options.sessions import automatic
from passthrough.worker import forkserver, live, process, sandbox
from plugin import app
from plugin.admin.settings import Settings
from plugin.api.connection import Connection
from plugin.mounting import worker
from plugin.mounting.fd_store import FIRST_FD, FdStore
from plugin.mounting.mount import Mount
from plugin.mounting.spawner import Spawner
from tests.support.fakes.dockerd import settings
from tests.support.fakes.service_manager import ServiceManager
from tests.support.tools.service import START_S, Service

REPOSITORY = Path(__file__).parents[3]


class Database(sqlite3.Connection):
    """The connection of the registry; a class in Python, so that its methods can be replaced."""


class Step(NamedTuple):
    """A function that changes something outside the plugin's memory."""

    owner: object
    name: str
    is_observed: bool = False
    """True if another process acts on the step: there is a crash point after it as well."""


STEPS = {
    "make a directory": Step(os, "mkdir"),
    "give a directory its owner": Step(os, "fchown"),
    "give a directory its mode": Step(os, "fchmod"),
    "move a directory": Step(syscalls, "renameat2"),
    "sync a directory": Step(os, "fsync"),
    "remove a directory": Step(os, "rmdir"),
    "move a file": Step(os, "rename"),
    "remove a file": Step(os, "unlink"),
    "commit": Step(Database, "__exit__"),
    "mount": Step(syscalls, "mount"),
    "unmount": Step(syscalls, "umount2"),
    "close the FUSE descriptor": Step(Mount, "close_fuse_fd"),
    "start the fork server": Step(Spawner, "start_fork_server", is_observed=True),
    "start a worker": Step(Spawner, "_request_fork", is_observed=True),
    "hand over": Step(worker, "_hand_over", is_observed=True),
    "change timeouts": Step(live, "change", is_observed=True),
    "let a successor serve": Step(worker.Worker, "keep", is_observed=True),
    "store descriptors": Step(socket, "send_fds"),
    "notify the service manager": Step(FdStore, "_send"),
    "listen": Step(socket.socket, "bind"),
    "answer": Step(Connection, "reply"),
}


# In the plugin's process.

# The environment variable with the descriptors of two pipes, which follow the stored descriptors.
# From the first one the plugin reads a byte at each crash point. To the second one it writes the
# name of the crash point at which it dies.
CRASH_FDS = "PASSFS_TEST_CRASH_FDS"
PARENT_ADDRESS = "PASSFS_TEST_PARENT"
CONTINUE, CRASH = b".", b"!"

# Replaces the command of the plugin's fork server. It makes the parent fork that fork server, and
# ends when the fork server does.
FORK_SERVER = """
import os, socket, sys
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
parent = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
parent.connect(sys.argv[1])
socket.send_fds(parent, [b"forks"], [theirs.fileno(), 0, 1, 2])
theirs.close()
os.close(0)
os.close(2)
while ours.recv(64):
    pass
"""


def run_forked() -> int:
    """Run in a child of the parent: a fork server if standard input is a socket, else a plugin."""
    if stat.S_ISSOCK(os.fstat(0).st_mode):
        return forkserver.main()
    environment: dict[str, str] = json.loads(os.read(0, 1 << 16))
    os.environ.update(environment, LISTEN_PID=str(os.getpid()))
    script_fd, report_fd = map(int, environment[CRASH_FDS].split())
    for name, step in STEPS.items():
        _add_crash_points(name, step, partial(_crash_point, script_fd, report_fd))
    sqlite3.connect = partial(sqlite3.connect, factory=Database)  # type: ignore[assignment]
    command = (sys.executable, "-I", "-S", "-c", FORK_SERVER, environment[PARENT_ADDRESS])
    app.composed = partial(app.composed, fork_server=command)
    if program := environment.get("PROGRAM"):
        vars(app)["identity"] = lambda: program
    app.run(Settings.from_environment(os.environ))
    return 0


def _crash_point(script_fd: int, report_fd: int, name: str) -> None:
    """Read one byte of the script, and die if it is CRASH; an empty script means to go on.

    Several threads may be here at once: read(2) gives each of them another byte.
    """
    try:
        byte = os.read(script_fd, 1)
    except BlockingIOError:
        return
    if byte == CRASH:
        os.write(report_fd, name.encode())
        os.kill(os.getpid(), signal.SIGKILL)


def _add_crash_points(name: str, step: Step, crash_point: Callable[[str], None]) -> None:
    """Replace *step* by a function with a crash point before it, and after it if observed."""
    function = getattr(step.owner, step.name)

    def after() -> None:
        if step.is_observed:
            crash_point(f"after: {name}")

    def call(*arguments: Any, **more: Any) -> Any:
        crash_point(f"before: {name}")
        result = function(*arguments, **more)
        after()
        return result

    async def call_async(*arguments: Any, **more: Any) -> Any:
        crash_point(f"before: {name}")
        result = await function(*arguments, **more)
        after()
        return result

    setattr(step.owner, step.name, call_async if inspect.iscoroutinefunction(function) else call)


# In the test's process.


class Parent:
    """The process that forks plugins; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.address = directory / "parent.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
            theirs.bind(str(self.address))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.tools.steps"],
                stdin=theirs.fileno(),
                cwd=REPOSITORY,
            )

    def fork(self, fds: Sequence[int]) -> tuple[socket.socket, int]:
        """Fork a process with *fds* as 0, 1, 2 and so on; return its status socket and a pidfd."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(START_S)
        with theirs:
            self._send(b"plugin", [theirs.fileno(), *fds])
        _, (pid_fd,), _, _ = socket.recv_fds(ours, 64, 1)
        return ours, pid_fd

    def _send(self, text: bytes, fds: Sequence[int] = ()) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.connect(str(self.address))
            socket.send_fds(own, [text], fds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._send(b"")
        self._process.wait(START_S)


class CrashingPlugin(Service):
    """A plugin that the test makes crash at a chosen crash point; a context manager."""

    def __init__(
        self, directory: Path, parent: Parent, manager: ServiceManager | None = None
    ) -> None:
        super().__init__(directory, manager)
        self._parent = parent
        self._pipes = ExitStack()
        self._script = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._report = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for fd in (*self._script, *self._report):
            self._pipes.callback(os.close, fd)
        self._status_socket: socket.socket | None = None
        self._pid_fd = -1
        self.crashes: list[str] = []
        """The names of the crash points at which the plugin has died."""

    def launch(self) -> None:
        """Start the process without waiting for it."""
        self.reap()
        own = settings(self.directory)
        stored = {} if self.manager is None else self.manager.settled()
        script_fd = FIRST_FD + len(stored)
        environment = {
            "PASSFS_SOCKET": str(own.socket),
            "PASSFS_DATA_DIR": str(own.data_dir),
            "PASSFS_MOUNT_DIR": str(own.mount_dir),
            "LISTEN_FDS": str(len(stored)),
            "LISTEN_FDNAMES": ":".join(stored),
            "NOTIFY_SOCKET": "" if self.manager is None else str(self.directory / "notify.sock"),
            PARENT_ADDRESS: str(self._parent.address),
            **self.environment,
            CRASH_FDS: f"{script_fd} {script_fd + 1}",
        }
        with self.log.open("ab") as log, ExitStack() as borrowed:
            read_end, write_end = os.pipe()
            borrowed.callback(os.close, read_end)
            os.write(write_end, json.dumps(environment).encode())
            os.close(write_end)
            fds = [read_end, log.fileno(), log.fileno()]
            self._status_socket, self._pid_fd = self._parent.fork(
                [*fds, *stored.values(), self._script[0], self._report[1]]
            )

    def start(self) -> float:
        """Start the process, wait until it answers or is dead, and return the seconds."""
        began = time.monotonic()
        self.launch()
        while self.try_call("VolumeDriver.Capabilities") is None and not self.is_dead():
            assert time.monotonic() < began + START_S, self.log.read_text()
            time.sleep(0.002)
        return time.monotonic() - began

    def try_call(self, path: str, **fields: object) -> Any:
        """Send one request, and return the JSON of the reply, or None if there is no reply."""
        try:
            return self.call(path, **fields)
        except (OSError, json.JSONDecodeError):
            return None

    def crash_at(self, number: int) -> None:
        """Let the plugin die at a crash point: the number of crash points before it is *number*."""
        os.write(self._script[1], CONTINUE * number + CRASH)

    def cancel_crash(self) -> bool:
        """Cancel the crash; return False if the plugin has crashed, and reap it then."""
        try:
            unread = os.read(self._script[0], 1 << 16)
        except BlockingIOError:
            unread = b""
        if CRASH in unread:
            return True
        self.reap()
        self.crashes.append(os.read(self._report[0], 1 << 10).decode())
        return False

    def is_dead(self, within_s: float = 0.0) -> bool:
        """Return whether the process has ended, waiting at most *within_s*, or was not started."""
        if self._status_socket is None:
            return True
        return bool(select.select([self._status_socket], [], [], within_s)[0])

    def reap(self) -> None:
        """Wait for the end of the process, if there is one."""
        if self._status_socket is not None:
            with self._status_socket as status_socket:
                assert status_socket.recv(64)
            os.close(self._pid_fd)
            self._status_socket, self._pid_fd = None, -1

    def send(self, number: signal.Signals) -> None:
        """Send signal *number* to the process."""
        signal.pidfd_send_signal(self._pid_fd, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self.is_dead():
                self.send(signal.SIGTERM)
            self.reap()
        finally:
            self._pipes.close()


if __name__ == "__main__":
    sandbox.preload()
    process.load(automatic(kernel_features.linux_release()).session)
    forkserver.serve(run_forked)
