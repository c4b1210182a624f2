"""Starts worker processes, by asking the fork server to fork (passthrough/forkserver.py).

A mount need not wait for an interpreter to start, and the workers share the memory of what they
have loaded. A fork server that ends takes no worker along, and the next start begins a new one.
"""

import array
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Final, Protocol

import trio

from plugin.output import forward
from plugin.volume import VolumeName, file_name

log = logging.getLogger(__name__)

# Isolated (-I): neither the working directory nor the environment decides which code runs as root.
COMMAND: Final = (sys.executable, "-I", "-m", "passthrough.forkserver")
# The return code of a worker whose fork server did not live to say it; no process has it.
UNKNOWN: Final = 256
# The fork server has nothing to do when it is told to end.
END_GRACE_S: Final = 2.0
# How ps(1) lists a worker, of whose name 15 bytes count: by its volume.
PROCESS_NAME: Final = "passfs:{}"

_PACKET: Final = 64
_STDIO: Final = 3


class Process(Protocol):
    """A started worker. Whoever started it closes the streams."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def returncode(self) -> int | None:
        """As subprocess.Popen has it, or UNKNOWN; None until `wait` has returned."""

    @property
    def given(self) -> Sequence[int]:
        """The numbers by which it knows the descriptors that it was given."""

    stdin: trio.abc.SendStream
    stdout: trio.abc.ReceiveStream
    stderr: trio.abc.ReceiveStream

    async def wait(self) -> object:
        """Wait until it has ended, one task at a time."""

    def kill(self) -> None:
        """End it at once; `wait` tells when."""


Start = Callable[[str, Sequence[int]], Awaitable[Process]]
"""Start a worker of a volume and give it descriptors, which are borrowed meanwhile."""


class Forked:
    """A worker that the fork server has forked."""

    def __init__(
        self,
        life: trio.socket.SocketType,
        stdin: trio.lowlevel.FdStream,
        stdout: trio.lowlevel.FdStream,
        stderr: trio.lowlevel.FdStream,
    ) -> None:
        """Take the life socket and the plugin's ends of the standard streams."""
        self.pid = 0
        self.returncode: int | None = None
        self.given: Sequence[int] = ()
        self.stdin: trio.abc.SendStream = stdin
        self.stdout: trio.abc.ReceiveStream = stdout
        self.stderr: trio.abc.ReceiveStream = stderr
        self._life = life
        self._pid_fd = -1

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
        self.pid = number
        self._pid_fd = array.array("i", ancillary[0][2])[0]

    async def wait(self) -> int:
        """Wait until it has ended; gives the return code."""
        if self.returncode is None:
            packet = await self._life.recv(_PACKET)
            if packet:
                self.returncode = os.waitstatus_to_exitcode(int(packet))
            else:  # the fork server has ended before
                await trio.lowlevel.wait_readable(self._pid_fd)
                self.returncode = UNKNOWN
            self.let_go()
        return self.returncode

    def kill(self) -> None:
        """End it at once; `wait` tells when."""
        if self._pid_fd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pid_fd, signal.SIGKILL)

    def let_go(self) -> None:
        """Close what leads to the process, but for its streams."""
        self._life.close()
        fd, self._pid_fd = self._pid_fd, -1
        if fd >= 0:
            os.close(fd)


class ForkServer:
    """The process that forks workers; made by `forking`."""

    def __init__(self, nursery: trio.Nursery, command: Sequence[str]) -> None:
        self._nursery = nursery
        self._command = command
        self._control: trio.socket.SocketType | None = None
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
        self._nursery.start_soon(self._watch, process, control)
        return control

    def end(self) -> None:
        """Have the process end, which it does when it is asked for nothing any more."""
        self._ending = True
        self._forget()

    def _forget(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            control.close()

    async def start(self, volume: str, fds: Sequence[int]) -> Process:
        """Start a worker of *volume* that is given *fds*.

        Raises:
            OSError: there can be no further process, descriptor or memory.
        """
        with ExitStack() as theirs, ExitStack() as undo:
            life, worker_ends, streams = _ties(theirs, undo)
            process = Forked(life, *streams)
            undo.callback(process.let_go)
            await self._ask(
                PROCESS_NAME.format(file_name(VolumeName(volume))), [*worker_ends, *fds]
            )
            theirs.close()
            await process.born()
            process.given = range(_STDIO, _STDIO + len(fds))
            undo.pop_all()
            return process

    async def _ask(self, name: str, fds: Sequence[int]) -> None:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        async with self._asking:
            if self._control is not None:
                # One that has just ended gets another; a second failure is the caller's.
                with suppress(BrokenPipeError, ConnectionResetError, trio.ClosedResourceError):
                    await self._control.sendmsg([name.encode()], [rights])
                    return
                self._forget()
            control = await self.begin()
            try:
                await control.sendmsg([name.encode()], [rights])
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
                with trio.move_on_after(END_GRACE_S):
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
async def forking(command: Sequence[str] = COMMAND) -> AsyncIterator[Start]:
    """A fork server for as long as this lasts; gives the way to start workers."""
    async with trio.open_nursery() as nursery:
        server = ForkServer(nursery, command)
        await server.begin()
        try:
            yield server.start
        finally:
            server.end()
