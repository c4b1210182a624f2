"""Starts worker processes, by asking the fork server to fork (passthrough/worker/forkserver.py).

A mount need not wait for an interpreter to start, and the workers share the memory of what they
have loaded. A fork server that ends takes no worker along, and the next start begins a new one. A
fork server that does not answer is killed and replaced.
"""

import array
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import trio

from plugin.mounting.worker_output import forward

log = logging.getLogger(__name__)

# Isolated (-I): neither the working directory nor the environment decides which code runs as root.
COMMAND: Final = (sys.executable, "-I", "-m", "passthrough.worker.forkserver")
# The return code of a worker whose fork server did not live to say it; no process has it.
UNKNOWN: Final = 256
# The fork server has nothing to do when it is told to end, and nothing to lose when it is killed.
END_GRACE_S: Final = 0.5
# The fork server forks in milliseconds, and loads all that it needs in a second. If it starts no
# worker for so long, it is stopped or hangs. This is half of a Mount's 18 s: a successor has the
# other half.
SILENCE_S = 9.0
# How ps(1) lists a worker, of whose name 15 bytes count: by its volume.
PROCESS_NAME: Final = "passfs:{}"

# The plugin's own view of processes; the host's is elsewhere if the plugin is in a container.
PROC: Final = Path("/proc")

_PACKET: Final = 64
_STDIO: Final = 3


class Process:
    """A worker, by its process descriptor. Whoever has it closes the streams, and lets it go."""

    def __init__(
        self,
        pid_fd: int,
        stdin: trio.lowlevel.FdStream,
        stderr: trio.lowlevel.FdStream,
        *,
        proc: Path = PROC,
    ) -> None:
        """Take the process descriptor, -1 as long as there is none, and our ends of two pipes."""
        self.pid = _pid_behind(pid_fd, proc) if pid_fd >= 0 else 0
        """As *proc* knows it."""
        self.returncode: int | None = None
        """As subprocess.Popen has it, or UNKNOWN; None until `wait` has returned."""
        self.stdin = stdin
        self.stderr = stderr
        self._pid_fd = pid_fd

    @classmethod
    def behind(cls, ties: Mapping[str, int], proc: Path = PROC) -> Self:
        """The process that `ties` has led to in another process; takes these descriptors."""
        streams = [trio.lowlevel.FdStream(ties[kind]) for kind in ("life", "log")]
        return cls(ties["process"], *streams, proc=proc)

    def ties(self) -> dict[str, int]:
        """The descriptors by which another process could do all that this one can.

        By their kinds in the service manager's store, plugin/mounting/fd_store.py.
        """
        return {
            "life": self.stdin.fileno(),
            "log": self.stderr.fileno(),
            "process": self._pid_fd,
        }

    async def wait(self) -> int:
        """Wait until it has ended, one task at a time; gives the return code."""
        if self.returncode is None:
            self.returncode = await self._ended()
            self.let_go()
        return self.returncode

    async def _ended(self) -> int:
        # Its parent has ended, and nobody else is told how it ends.
        await trio.lowlevel.wait_readable(self._pid_fd)
        return UNKNOWN

    def kill(self) -> None:
        """End it at once; `wait` tells when."""
        if self._pid_fd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pid_fd, signal.SIGKILL)

    def let_go(self) -> None:
        """Close what leads to the process, but for its streams."""
        fd, self._pid_fd = self._pid_fd, -1
        if fd >= 0:
            os.close(fd)


class Forked(Process):
    """A worker that the fork server has forked."""

    def __init__(
        self,
        life: trio.socket.SocketType,
        stdin: trio.lowlevel.FdStream,
        stdout: trio.lowlevel.FdStream,
        stderr: trio.lowlevel.FdStream,
        *,
        proc: Path = PROC,
    ) -> None:
        """Take the life socket and the plugin's ends of the standard streams."""
        super().__init__(-1, stdin, stderr)
        self._proc = proc
        self.stdout = stdout
        self.given: Sequence[int] = ()
        """The numbers by which it knows the descriptors that it was given."""
        self._life = life

    async def born(self) -> None:
        """Wait until it exists.

        Raises:
            OSError: it cannot be, or the fork server has ended.
        """
        packet, ancillary, _, _ = await self._life.recvmsg(_PACKET, socket.CMSG_SPACE(_PACKET))
        number = int(packet or b"%d" % -errno.ECONNRESET)
        if number < 0:
            raise OSError(-number, os.strerror(-number))
        if not ancillary:  # the worker sees its standard input end, and ends
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self._pid_fd = array.array("i", ancillary[0][2])[0]
        self.pid = number if self._proc == PROC else _pid_behind(self._pid_fd, self._proc)

    async def _ended(self) -> int:
        packet = await self._life.recv(_PACKET)
        if packet:
            return os.waitstatus_to_exitcode(int(packet))
        return await super()._ended()  # the fork server has ended before

    def let_go(self) -> None:
        """Close what leads to the process, but for its streams."""
        self._life.close()
        super().let_go()


Start = Callable[[str, str, Sequence[int]], Awaitable[Forked]]
"""Start a worker of a volume, for a session, and give it descriptors, which are borrowed."""


class ForkServer:
    """The process that forks workers; made by `forking`."""

    def __init__(self, nursery: trio.Nursery, command: Sequence[str], proc: Path) -> None:
        self._nursery = nursery
        self._proc = proc
        self._command = command
        self._control: trio.socket.SocketType | None = None
        self._process: trio.Process | None = None
        self._waiting: set[trio.CancelScope] = set()
        self._asking = trio.Lock()
        self._ending = False

    async def begin(self) -> trio.socket.SocketType:
        """Start the process; gives the socket over which it is asked."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control = self._control = trio.socket.from_stdlib_socket(ours)
        with theirs:
            process = await trio.lowlevel.open_process(
                self._command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                # A Ctrl-C in the plugin's terminal is for the plugin.
                start_new_session=True,
            )
        self._process = process
        self._give_time()
        self._nursery.start_soon(self._watch, process, control)
        return control

    def end(self) -> None:
        """Have the process end, which it does when it is asked for nothing any more."""
        self._ending = True
        self._forget()

    def _forget(self) -> None:
        control, self._control = self._control, None
        self._process = None
        if control is not None:
            control.close()

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Replace the process if it starts no worker at all in SILENCE_S of this block.

        Raises:
            TimeoutError: it has been replaced.
        """
        with trio.CancelScope() as waiting:
            self._waiting.add(waiting)
            self._give_time()
            try:
                yield
            finally:
                self._waiting.remove(waiting)
        if waiting.cancelled_caught:
            self._replace()
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        self._give_time()

    def _give_time(self) -> None:
        """Wait SILENCE_S from now for what has been asked: the process has just done something."""
        for scope in self._waiting:
            scope.deadline = trio.current_time() + SILENCE_S

    def _replace(self) -> None:
        """Kill the process, which must fork nothing later; the next start begins another one."""
        if self._process is not None:
            log.warning("the fork server has started no worker for %g s, and is killed", SILENCE_S)
            self._process.kill()  # a child that is not reaped keeps its id
        self._forget()

    async def start(self, volume: str, session: str, fds: Sequence[int]) -> Forked:
        """Start a worker of *volume* that will run *session* and is given *fds*.

        A fork server that ends meanwhile, or does not answer, gets one successor.

        Raises:
            OSError: there can be no further process, descriptor or memory.
        """
        with suppress(ConnectionResetError, TimeoutError):
            return await self._start(volume, session, fds)
        return await self._start(volume, session, fds)

    async def _start(self, volume: str, session: str, fds: Sequence[int]) -> Forked:
        with ExitStack() as theirs, ExitStack() as undo:
            life, worker_ends, streams = _ties(theirs, undo)
            process = Forked(life, *streams, proc=self._proc)
            undo.callback(process.let_go)
            name = PROCESS_NAME.format(volume)
            with self._answered():
                await self._ask(f"{session}\0{name}", [*worker_ends, *fds])
                theirs.close()
                await process.born()
            process.given = range(_STDIO, _STDIO + len(fds))
            undo.pop_all()
            return process

    async def _ask(self, packet: str, fds: Sequence[int]) -> None:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        async with self._asking:
            if self._control is not None:
                # One that has just ended gets another; a second failure is the caller's.
                with suppress(BrokenPipeError, ConnectionResetError, trio.ClosedResourceError):
                    await self._control.sendmsg([packet.encode()], [rights])
                    return
                self._forget()
            control = await self.begin()
            try:
                await control.sendmsg([packet.encode()], [rights])
            except trio.ClosedResourceError:
                raise ConnectionResetError(
                    errno.ECONNRESET, os.strerror(errno.ECONNRESET)
                ) from None

    async def _watch(self, process: trio.Process, control: trio.socket.SocketType) -> None:
        assert process.stderr is not None  # noqa: S101 - opened as a pipe
        try:
            await forward(process.stderr, lambda level, text: log.log(level, "%s", text))
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(0 if self._ending else END_GRACE_S):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            if self._control is control:
                self._forget()
        if not self._ending:
            log.warning(
                "the fork server ended with %d; the next mount begins another", process.returncode
            )


def _pid_behind(pid_fd: int, proc: Path) -> int:
    """The process id behind a process descriptor, below 1 if the process has ended.

    It is the id in the pid namespace of the procfs at *proc*, fs/pidfs.c of Linux.
    """
    with open(proc / "self" / "fdinfo" / str(pid_fd), "rb") as lines:
        fields = dict(line.split(b":", 1) for line in lines)
    return int(fields[b"Pid"])


def _ties(
    theirs: ExitStack, undo: ExitStack
) -> tuple[trio.socket.SocketType, list[int], list[trio.lowlevel.FdStream]]:
    """What ties a worker to the plugin: the life socket, and its standard streams."""
    ours, life = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.callback(life.close)
    life_socket = trio.socket.from_stdlib_socket(ours)
    undo.callback(life_socket.close)
    worker_ends, streams = [life.fileno()], []
    for reads in (True, False, False):
        read_end, write_end = os.pipe()
        worker_end, our_end = (read_end, write_end) if reads else (write_end, read_end)
        theirs.callback(os.close, worker_end)
        stream = trio.lowlevel.FdStream(our_end)
        undo.callback(stream.close)
        worker_ends.append(worker_end)
        streams.append(stream)
    return life_socket, worker_ends, streams


@asynccontextmanager
async def forking(command: Sequence[str] = COMMAND, proc: Path = PROC) -> AsyncIterator[Start]:
    """A fork server for as long as this lasts; gives the way to start workers."""
    async with trio.open_nursery() as nursery:
        server = ForkServer(nursery, command, proc)
        await server.begin()
        try:
            yield server.start
        finally:
            server.end()
            # One that hangs does not close its standard error.
            nursery.cancel_scope.deadline = trio.current_time() + END_GRACE_S
