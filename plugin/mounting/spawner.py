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
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from plugin.mounting.orphans import reap_orphans
from plugin.mounting.process import PROC, ForkedProcess
from plugin.mounting.worker_output import Message, forward_log

log = logging.getLogger(__name__)

# Isolated (-I): neither the working directory nor the environment decides which code runs as root.
COMMAND: Final = (sys.executable, "-I", "-m", "passthrough.worker.forkserver")
# An idle fork server ends at once when its control socket closes; then it is killed.
END_GRACE_S: Final = 0.5
# A fork takes milliseconds, and loading the modules one second. A fork server that starts no worker
# for so long is stopped or hangs. This is half of a Mount's 18 s: its successor has the other half.
START_TIMEOUT_S = 9.0
# The name of a worker in ps(1), of which the kernel keeps 15 bytes; filled with the volume's name.
PROCESS_NAME: Final = "passfs:{}"

_STDIO_FDS: Final = 3

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
        self._starting = False
        self._not_reaped: set[int] = set()  # fork servers
        self._pending: set[trio.CancelScope] = set()
        self._send_lock = trio.Lock()
        self._closing = False

    async def start_fork_server(self) -> trio.socket.SocketType:
        """Start the fork server and return its control socket, which takes requests."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control = self._control = trio.socket.from_stdlib_socket(ours)
        self._starting = True
        try:
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
            self._not_reaped.add(fork_server.pid)
        finally:
            self._starting = False
        self._fork_server = fork_server
        self._extend_deadlines()
        self._nursery.start_soon(self._supervise, fork_server, control)
        return control

    def may_be_fork_server(self, pid: int) -> bool:
        """Return whether the child *pid*, which has ended, may be a fork server."""
        return self._starting or pid in self._not_reaped

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
            await forward_log(fork_server.stderr, _log)
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(0 if self._closing else END_GRACE_S):
                    await fork_server.wait()
                if fork_server.returncode is None:
                    fork_server.kill()
                    await fork_server.wait()
            self._not_reaped.discard(fork_server.pid)
            if self._control is control:
                self._disconnect()
        if not self._closing:
            log.warning(
                "the fork server ended with %d; the next mount begins another",
                fork_server.returncode,
            )


def _log(message: Message) -> None:
    log.log(message.level, "%s", message.text, extra={"traceback": message.traceback})


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
    async with trio.open_nursery() as reaping:
        async with trio.open_nursery() as nursery:
            spawner = Spawner(nursery, command, proc)
            reaping.start_soon(reap_orphans, spawner.may_be_fork_server)
            await spawner.start_fork_server()
            try:
                yield spawner.start
            finally:
                spawner.close()
                # A fork server that hangs does not close its standard error.
                nursery.cancel_scope.deadline = trio.current_time() + END_GRACE_S
        reaping.cancel_scope.cancel()
