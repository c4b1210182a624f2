"""Starts worker processes by way of the fork server (passthrough/worker/forkserver.py).

The fork server has loaded the worker's modules and forks a worker in milliseconds. No mount waits
for an interpreter to start, and the workers share the memory of these modules. If the fork server
ends, its workers go on, and the next start begins a new fork server. If it does not answer, the
spawner kills and replaces it.
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

from plugin.mounting.worker_output import forward_log

log = logging.getLogger(__name__)

# Isolated (-I): neither the working directory nor the environment decides which code runs as root.
COMMAND: Final = (sys.executable, "-I", "-m", "passthrough.worker.forkserver")
# The return code of a worker that outlived its fork server; no process can have it.
UNKNOWN_RETURNCODE: Final = 256
# An idle fork server ends at once when its control socket closes; then it is killed.
END_GRACE_S: Final = 0.5
# A fork takes milliseconds, and loading the modules one second. A fork server that starts no worker
# for so long is stopped or hangs. This is half of a Mount's 18 s: its successor has the other half.
START_TIMEOUT_S = 9.0
# The name of a worker in ps(1), of which the kernel keeps 15 bytes; filled with the volume's name.
PROCESS_NAME: Final = "passfs:{}"

# The procfs of the plugin's own pid namespace. In a container, the host's is mounted elsewhere.
PROC: Final = Path("/proc")

_PACKET_BYTES: Final = 64
_STDIO_FDS: Final = 3


class Process:
    """A worker process that the plugin reaches by a process descriptor and two pipes.

    The owner closes the streams, and calls `close` unless `wait` has returned.
    """

    def __init__(
        self,
        pid_fd: int,
        stdin: trio.lowlevel.FdStream,
        stderr: trio.lowlevel.FdStream,
        *,
        proc: Path = PROC,
    ) -> None:
        """Take the process descriptor (-1: not yet known) and the plugin's ends of two pipes."""
        self.pid = _pid_of(pid_fd, proc) if pid_fd >= 0 else 0
        """The process id in the pid namespace of *proc*; 0 until the process exists."""
        self.returncode: int | None = None
        """As of subprocess.Popen, or UNKNOWN_RETURNCODE; None until `wait` has returned."""
        self.stdin = stdin
        self.stderr = stderr
        self._pid_fd = pid_fd

    @classmethod
    def from_descriptors(cls, descriptors: Mapping[str, int], proc: Path = PROC) -> Self:
        """Return the process of the *descriptors* that an earlier plugin stored, and take them."""
        streams = [trio.lowlevel.FdStream(descriptors[kind]) for kind in ("life", "log")]
        return cls(descriptors["process"], *streams, proc=proc)

    def descriptors(self) -> dict[str, int]:
        """Return the descriptors that `from_descriptors` needs, still owned by this object.

        The keys are kinds of the fd store, plugin/mounting/fd_store.py.
        """
        return {
            "life": self.stdin.fileno(),
            "log": self.stderr.fileno(),
            "process": self._pid_fd,
        }

    async def wait(self) -> int:
        """Wait until the process has ended, and return its return code; for one task at a time."""
        if self.returncode is None:
            self.returncode = await self._wait_for_returncode()
            self.close()
        return self.returncode

    async def _wait_for_returncode(self) -> int:
        # The kernel tells only the parent how a process ended, and the parent is gone.
        await trio.lowlevel.wait_readable(self._pid_fd)
        return UNKNOWN_RETURNCODE

    def kill(self) -> None:
        """Send SIGKILL; use `wait` for the end."""
        if self._pid_fd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pid_fd, signal.SIGKILL)

    def close(self) -> None:
        """Close the process descriptor; the streams stay open."""
        fd, self._pid_fd = self._pid_fd, -1
        if fd >= 0:
            os.close(fd)


class ForkedProcess(Process):
    """A worker process that the fork server of this plugin forks."""

    def __init__(
        self,
        status_socket: trio.socket.SocketType,
        stdin: trio.lowlevel.FdStream,
        stdout: trio.lowlevel.FdStream,
        stderr: trio.lowlevel.FdStream,
        *,
        proc: Path = PROC,
    ) -> None:
        """Take the status socket and the plugin's ends of the standard streams."""
        super().__init__(-1, stdin, stderr)
        self._proc = proc
        self.stdout = stdout
        self.passed_fds: Sequence[int] = ()
        """The numbers in the worker of the descriptors that were passed to it."""
        self._status_socket = status_socket

    async def wait_until_forked(self) -> None:
        """Wait until the process exists.

        Raises:
            OSError: fork(2) failed, or the fork server has ended.
        """
        packet, ancillary, _, _ = await self._status_socket.recvmsg(
            _PACKET_BYTES, socket.CMSG_SPACE(_PACKET_BYTES)
        )
        number = int(packet or b"%d" % -errno.ECONNRESET)
        if number < 0:
            raise OSError(-number, os.strerror(-number))
        # The plugin has too many open files. The caller closes the worker's stdin, which ends it.
        if not ancillary:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self._pid_fd = array.array("i", ancillary[0][2])[0]
        self.pid = number if self._proc == PROC else _pid_of(self._pid_fd, self._proc)

    async def _wait_for_returncode(self) -> int:
        packet = await self._status_socket.recv(_PACKET_BYTES)
        if packet:
            return os.waitstatus_to_exitcode(int(packet))
        return await super()._wait_for_returncode()  # the fork server ended before the worker

    def close(self) -> None:
        """Close the status socket and the process descriptor; the streams stay open."""
        self._status_socket.close()
        super().close()


StartWorker = Callable[[str, str, Sequence[int]], Awaitable[ForkedProcess]]
"""Start a worker, given its volume, its session and descriptors that it inherits (borrowed)."""


class Spawner:
    """The fork server and the requests to it; made by `spawning`."""

    def __init__(self, nursery: trio.Nursery, command: Sequence[str], proc: Path) -> None:
        self._nursery = nursery
        self._proc = proc
        self._command = command
        self._control: trio.socket.SocketType | None = None
        self._fork_server: trio.Process | None = None
        self._pending: set[trio.CancelScope] = set()
        self._send_lock = trio.Lock()
        self._closing = False

    async def start_fork_server(self) -> trio.socket.SocketType:
        """Start the fork server and return its control socket, which takes requests."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control = self._control = trio.socket.from_stdlib_socket(ours)
        with theirs:
            fork_server = await trio.lowlevel.open_process(
                self._command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                # A Ctrl-C in the plugin's terminal is for the plugin.
                start_new_session=True,
            )
        self._fork_server = fork_server
        self._extend_deadlines()
        self._nursery.start_soon(self._supervise, fork_server, control)
        return control

    def close(self) -> None:
        """Close the control socket, which ends the fork server."""
        self._closing = True
        self._disconnect()

    def _disconnect(self) -> None:
        control, self._control = self._control, None
        self._fork_server = None
        if control is not None:
            control.close()

    @contextmanager
    def _start_deadline(self) -> Iterator[None]:
        """Kill the fork server if it starts no worker for START_TIMEOUT_S during this block.

        Raises:
            TimeoutError: the fork server has been killed; the next start begins another.
        """
        with trio.CancelScope() as scope:
            self._pending.add(scope)
            self._extend_deadlines()
            try:
                yield
            finally:
                self._pending.remove(scope)
        if scope.cancelled_caught:
            self._kill_fork_server()
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        self._extend_deadlines()

    def _extend_deadlines(self) -> None:
        """Move the deadline of each pending request to START_TIMEOUT_S from now."""
        for scope in self._pending:
            scope.deadline = trio.current_time() + START_TIMEOUT_S

    def _kill_fork_server(self) -> None:
        """Kill the fork server, so that it forks nothing later; the next start begins another."""
        if self._fork_server is not None:
            log.warning(
                "the fork server has started no worker for %g s, and is killed", START_TIMEOUT_S
            )
            self._fork_server.kill()  # not reaped yet, so the process id is still its own
        self._disconnect()

    async def start(self, volume: str, session: str, fds: Sequence[int]) -> ForkedProcess:
        """Start a worker of *volume* that will run *session* and inherits *fds*.

        If the fork server ends meanwhile or does not answer, its successor gets one attempt.

        Raises:
            OSError: the limit of processes, descriptors or memory is reached.
        """
        with suppress(ConnectionResetError, TimeoutError):
            return await self._start(volume, session, fds)
        return await self._start(volume, session, fds)

    async def _start(self, volume: str, session: str, fds: Sequence[int]) -> ForkedProcess:
        with ExitStack() as worker_side, ExitStack() as undo:
            status_socket, worker_ends, streams = _open_channels(worker_side, undo)
            process = ForkedProcess(status_socket, *streams, proc=self._proc)
            undo.callback(process.close)
            name = PROCESS_NAME.format(volume)
            with self._start_deadline():
                await self._request_fork(f"{session}\0{name}", [*worker_ends, *fds])
                worker_side.close()
                await process.wait_until_forked()
            process.passed_fds = range(_STDIO_FDS, _STDIO_FDS + len(fds))
            undo.pop_all()
            return process

    async def _request_fork(self, packet: str, fds: Sequence[int]) -> None:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        async with self._send_lock:
            if self._control is not None:
                # If the fork server has just ended, ask a new one; a second failure is an error.
                with suppress(BrokenPipeError, ConnectionResetError, trio.ClosedResourceError):
                    await self._control.sendmsg([packet.encode()], [rights])
                    return
                self._disconnect()
            control = await self.start_fork_server()
            try:
                await control.sendmsg([packet.encode()], [rights])
            except trio.ClosedResourceError:
                raise ConnectionResetError(
                    errno.ECONNRESET, os.strerror(errno.ECONNRESET)
                ) from None

    async def _supervise(self, fork_server: trio.Process, control: trio.socket.SocketType) -> None:
        """Forward the fork server's log until it ends, and reap it."""
        assert fork_server.stderr is not None  # noqa: S101 - opened as a pipe
        try:
            await forward_log(fork_server.stderr, lambda level, text: log.log(level, "%s", text))
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(0 if self._closing else END_GRACE_S):
                    await fork_server.wait()
                if fork_server.returncode is None:
                    fork_server.kill()
                    await fork_server.wait()
            if self._control is control:
                self._disconnect()
        if not self._closing:
            log.warning(
                "the fork server ended with %d; the next mount begins another",
                fork_server.returncode,
            )


def _pid_of(pid_fd: int, proc: Path) -> int:
    """Return the process id of a process descriptor, below 1 if the process has ended.

    The id is of the pid namespace of the procfs at *proc*, fs/pidfs.c of Linux.
    """
    with open(proc / "self" / "fdinfo" / str(pid_fd), "rb") as lines:
        fields = dict(line.split(b":", 1) for line in lines)
    return int(fields[b"Pid"])


def _open_channels(
    worker_side: ExitStack, undo: ExitStack
) -> tuple[trio.socket.SocketType, list[int], list[trio.lowlevel.FdStream]]:
    """Open a worker's status socket and standard streams.

    *worker_side* closes the worker's ends, *undo* the plugin's.

    Returns:
        The plugin's status socket, the worker's four ends, and the plugin's three stream ends.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker_side.callback(theirs.close)
    status_socket = trio.socket.from_stdlib_socket(ours)
    undo.callback(status_socket.close)
    worker_ends, streams = [theirs.fileno()], []
    for worker_reads in (True, False, False):
        read_end, write_end = os.pipe()
        worker_end, our_end = (read_end, write_end) if worker_reads else (write_end, read_end)
        worker_side.callback(os.close, worker_end)
        stream = trio.lowlevel.FdStream(our_end)
        undo.callback(stream.close)
        worker_ends.append(worker_end)
        streams.append(stream)
    return status_socket, worker_ends, streams


@asynccontextmanager
async def spawning(
    command: Sequence[str] = COMMAND, proc: Path = PROC
) -> AsyncIterator[StartWorker]:
    """Run a fork server by *command* during the block; yields the function that starts workers."""
    async with trio.open_nursery() as nursery:
        spawner = Spawner(nursery, command, proc)
        await spawner.start_fork_server()
        try:
            yield spawner.start
        finally:
            spawner.close()
            # A fork server that hangs does not close its standard error.
            nursery.cancel_scope.deadline = trio.current_time() + END_GRACE_S
