"""A plugin that can be killed at any of its steps, and starts in milliseconds.

A *step* is a call of one of the functions in `STEPS`, by which the plugin changes something outside
of its memory. Before each step there is a *moment* at which it can be killed; after it, nothing has
changed until the moment before the next one, unless somebody else acts on the step meanwhile: then
there is one more, right after it.

Each process here is forked by the *nest*, which has loaded all that a plugin and its fork server
consist of. It is itself a fork server (worker/forkserver.py), over a socket with a name.
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
from passthrough.worker import forkserver, process, sandbox
from plugin import app
from plugin.admin.settings import Settings
from plugin.api.server import StreamedReply
from plugin.mounting import worker as serving
from plugin.mounting.fd_store import FIRST_FD, Store
from plugin.mounting.mount import Mount
from plugin.mounting.spawner import ForkServer
from tests.support.fakes.dockerd import settings
from tests.support.fakes.manager import Manager
from tests.support.tools.service import START_S, Service

REPOSITORY = Path(__file__).parents[3]


class Database(sqlite3.Connection):
    """What the registry writes to."""


class Step(NamedTuple):
    """A function that changes something outside of the plugin's memory."""

    owner: object
    name: str
    is_heard: bool = False
    """Whether somebody else acts on it."""


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
    "let a mount go": Step(Mount, "let_go"),
    "start the fork server": Step(ForkServer, "begin", is_heard=True),
    "start a worker": Step(ForkServer, "_ask", is_heard=True),
    "hand over": Step(serving, "_hand_over", is_heard=True),
    "have descriptors kept": Step(socket, "send_fds"),
    "tell the service manager": Step(Store, "_tell"),
    "listen": Step(socket.socket, "bind"),
    "answer": Step(StreamedReply, "__call__"),
}


# In the plugin's process.

# As the service manager would, and after what it has kept: where moments are counted, and told.
DOOM = "PASSFS_TEST_DOOM"
GO_ON, DIE = b".", b"!"

# In the place of the fork server's interpreter: has the nest fork it, and ends when that does.
STAND_IN = """
import os, socket, sys
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
nest = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
nest.connect(sys.argv[1])
socket.send_fds(nest, [b"forks"], [theirs.fileno(), 0, 1, 2])
theirs.close()
os.close(0)
os.close(2)
while ours.recv(64):
    pass
"""


def hatch() -> int:
    """Become what the nest has been asked for: a plugin, or a plugin's fork server."""
    if stat.S_ISSOCK(os.fstat(0).st_mode):
        return forkserver.main()
    environment: dict[str, str] = json.loads(os.read(0, 1 << 16))
    os.environ.update(environment, LISTEN_PID=str(os.getpid()))
    moments, fate = map(int, environment[DOOM].split())
    for row, step in STEPS.items():
        _count(row, step, partial(_moment, moments, fate))
    sqlite3.connect = partial(sqlite3.connect, factory=Database)  # type: ignore[assignment]
    stand_in = (sys.executable, "-I", "-S", "-c", STAND_IN, environment["NEST"])
    app.composed = partial(app.composed, worker=stand_in)
    app.run(Settings.from_environment(os.environ))
    return 0


def _moment(moments: int, fate: int, what: str) -> None:
    """Die if this is the moment to; nobody else takes the same, which read(2) sees to."""
    try:
        said = os.read(moments, 1)
    except BlockingIOError:
        return
    if said == DIE:
        os.write(fate, what.encode())
        os.kill(os.getpid(), signal.SIGKILL)


def _count(row: str, step: Step, moment: Callable[[str], None]) -> None:
    """Have a moment before each call of *step*, and after it if it is heard."""
    function = getattr(step.owner, step.name)

    def after() -> None:
        if step.is_heard:
            moment(f"after: {row}")

    def call(*arguments: Any, **more: Any) -> Any:
        moment(f"before: {row}")
        result = function(*arguments, **more)
        after()
        return result

    async def wait_for(*arguments: Any, **more: Any) -> Any:
        moment(f"before: {row}")
        result = await function(*arguments, **more)
        after()
        return result

    setattr(step.owner, step.name, wait_for if inspect.iscoroutinefunction(function) else call)


# In the test's process.


class Nest:
    """The process that forks plugins; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.address = directory / "nest.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
            theirs.bind(str(self.address))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.tools.steps"],
                stdin=theirs.fileno(),
                cwd=REPOSITORY,
            )

    def fork(self, fds: Sequence[int]) -> tuple[socket.socket, int]:
        """A process with *fds* as 0, 1, 2 and so on; gives its life socket and a descriptor."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(START_S)
        with theirs:
            self._say(b"plugin", [theirs.fileno(), *fds])
        _, (pid_fd,), _, _ = socket.recv_fds(ours, 64, 1)
        return ours, pid_fd

    def _say(self, text: bytes, fds: Sequence[int] = ()) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.connect(str(self.address))
            socket.send_fds(own, [text], fds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._say(b"")
        self._process.wait(START_S)


class Mortal(Service):
    """A plugin of which it is decided at which moment it dies; a context manager."""

    def __init__(self, directory: Path, nest: Nest, manager: Manager | None = None) -> None:
        super().__init__(directory, manager)
        self._nest = nest
        self._own = ExitStack()
        self._moments = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._fate = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for fd in (*self._moments, *self._fate):
            self._own.callback(os.close, fd)
        self._life: socket.socket | None = None
        self._pid_fd = -1
        self.deaths: list[str] = []
        """The moments at which it has been killed."""

    def launch(self) -> None:
        """Begin the process, and do not wait."""
        self.bury()
        given = settings(self.directory)
        kept = {} if self.manager is None else self._kept(self.manager)
        doom = FIRST_FD + len(kept)
        told = {
            "PASSFS_SOCKET": str(given.socket),
            "PASSFS_DATA_DIR": str(given.data_dir),
            "PASSFS_MOUNT_DIR": str(given.mount_dir),
            "LISTEN_FDS": str(len(kept)),
            "LISTEN_FDNAMES": ":".join(kept),
            "NOTIFY_SOCKET": "" if self.manager is None else str(self.directory / "notify.sock"),
            "NEST": str(self._nest.address),
            DOOM: f"{doom} {doom + 1}",
        }
        with self.log.open("ab") as log, ExitStack() as lent:
            read_end, write_end = os.pipe()
            lent.callback(os.close, read_end)
            os.write(write_end, json.dumps(told).encode())
            os.close(write_end)
            fds = [read_end, log.fileno(), log.fileno()]
            self._life, self._pid_fd = self._nest.fork(
                [*fds, *kept.values(), self._moments[0], self._fate[1]]
            )

    def _kept(self, manager: Manager) -> dict[str, int]:
        """What *manager* keeps when it has read all that it was told by who is dead now."""
        read_end, write_end = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own, open(read_end, "rb") as read:
            own.connect(str(self.directory / "notify.sock"))
            socket.send_fds(own, [b"BARRIER=1"], [write_end])
            os.close(write_end)
            read.read()
        return dict(manager.kept)

    def start(self) -> float:
        """Begin the process and wait until it answers, or is dead; gives the seconds."""
        began = time.monotonic()
        self.launch()
        while self.attempt("VolumeDriver.Capabilities") is None and not self.is_dead():
            assert time.monotonic() < began + START_S, self.log.read_text()
            time.sleep(0.002)
        return time.monotonic() - began

    def attempt(self, path: str, **fields: object) -> Any:
        """One request; gives the JSON of the reply, or None if nobody gave one."""
        try:
            return self.call(path, **fields)
        except (OSError, json.JSONDecodeError):
            return None

    def doom(self, moment: int) -> None:
        """Decide that it dies at its *moment*-th moment from now on; 0 is the first."""
        os.write(self._moments[1], GO_ON * moment + DIE)

    def spare(self) -> bool:
        """Decide that it does not die after all; False if it is too late, and it is dead."""
        try:
            left = os.read(self._moments[0], 1 << 16)
        except BlockingIOError:
            left = b""
        if DIE in left:
            return True
        self.bury()
        self.deaths.append(os.read(self._fate[0], 1 << 10).decode())
        return False

    def is_dead(self, within_s: float = 0.0) -> bool:
        """Whether there is no process, or it has ended."""
        return self._life is None or bool(select.select([self._life], [], [], within_s)[0])

    def bury(self) -> None:
        """Wait for the end of its process, if there is one."""
        if self._life is not None:
            with self._life as life:
                assert life.recv(64)
            os.close(self._pid_fd)
            self._life, self._pid_fd = None, -1

    def send(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        signal.pidfd_send_signal(self._pid_fd, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self.is_dead():
                self.send(signal.SIGTERM)
            self.bury()
        finally:
            self._own.close()


if __name__ == "__main__":
    sandbox.preload()
    process.load(automatic(kernel_features.linux_release()).session)
    forkserver.serve(hatch)
