"""The process of a mount that the plugin has started, or that an earlier plugin has stored."""

import array
import errno
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import trio

from passthrough.linux.pidfd import has_ended

# The return code of a worker that outlived its fork server; no process can have it.
UNKNOWN_RETURNCODE: Final = 256

# The procfs of the plugin's own pid namespace. In a container, the host's is mounted elsewhere.
PROC: Final = Path("/proc")

# PIDFD_SIGNAL_PROCESS_GROUP, linux/pidfd.h. The first process of the group may have ended.
_WHOLE_GROUP: Final = 4
_PACKET_BYTES: Final = 64


class Process:
    """A worker process that the plugin reaches by a process descriptor and two pipes.

    With a standby, this is the first guard of the mount. The process leads a process group, to
    which the workers and the other guard belong.

    The owner closes the streams, and calls `close`.
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
        self.pid = pid_of(pid_fd, proc) if pid_fd >= 0 else 0
        """The process id in the pid namespace of *proc*; 0 until the process exists."""
        self.returncode: int | None = None
        """As of subprocess.Popen, or UNKNOWN_RETURNCODE; None until `wait` has returned."""
        self.stdin = stdin
        self.stderr = stderr
        self.proc = proc
        self.group = pid_of(pid_fd, PROC) if pid_fd >= 0 else 0
        """The process group in the plugin's pid namespace; below 1 if it is not known."""
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
        """Wait until the process has ended, and return its return code; for one task at a time.

        With a standby, other processes of the group may live on.
        """
        if self.returncode is None:
            self.returncode = await self._wait_for_returncode()
        return self.returncode

    async def _wait_for_returncode(self) -> int:
        # The kernel tells only the parent how a process ended, and the parent is gone.
        await trio.lowlevel.wait_readable(self._pid_fd)
        return UNKNOWN_RETURNCODE

    def open_member(self, pid: int) -> int:
        """Return a process descriptor of *pid*, or -1 if it does not live or is not in this group.

        *pid* is of the plugin's pid namespace. If an earlier plugin started the group, and its
        first process has ended, the group is not known, and each live process that is not in the
        plugin's own group counts as a member.
        """
        try:
            pid_fd = os.pidfd_open(pid)
        except OSError:  # it has ended, or descriptors run out
            return -1
        with suppress(ProcessLookupError):
            group = os.getpgid(pid)
            known = group == self.group if self.group > 0 else group != os.getpgrp()
            if known and not has_ended(pid_fd):
                return pid_fd
        os.close(pid_fd)
        return -1

    def shown_pid(self, pid: int, pid_fd: int) -> int:
        """Return the number of the process *pid* in the pid namespace of the procfs *proc*.

        *pid_fd* is its process descriptor. The result is below 1 if the process has ended.
        """
        return pid if self.proc == PROC else pid_of(pid_fd, self.proc)

    def kill(self) -> None:
        """Send SIGKILL to the process and to all others of its group; use `wait` for the end."""
        self._signal_all(signal.SIGKILL)

    def kill_leader(self) -> None:
        """Send SIGKILL to the process alone."""
        self._signal_leader(signal.SIGKILL)

    def resume(self) -> None:
        """Send SIGCONT to the process and to all others of its group."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        self._signal_leader(number)  # it has no group yet, right after its fork
        if self._pid_fd < 0:
            return
        with suppress(ProcessLookupError):
            try:
                signal.pidfd_send_signal(self._pid_fd, number, None, _WHOLE_GROUP)
            except OSError as error:  # EINVAL: Linux before 6.9
                if error.errno != errno.EINVAL:
                    raise
                if self.group > 0:
                    os.killpg(self.group, number)

    def _signal_leader(self, number: signal.Signals) -> None:
        if self._pid_fd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pid_fd, number)

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
        super().__init__(-1, stdin, stderr, proc=proc)
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
        self.group = number
        self.pid = number if self.proc == PROC else pid_of(self._pid_fd, self.proc)

    async def _wait_for_returncode(self) -> int:
        packet = await self._status_socket.recv(_PACKET_BYTES)
        if packet:
            return os.waitstatus_to_exitcode(int(packet))
        return await super()._wait_for_returncode()  # the fork server ended before the worker

    def close(self) -> None:
        """Close the status socket and the process descriptor; the streams stay open."""
        self._status_socket.close()
        super().close()


def pid_of(pid_fd: int, proc: Path) -> int:
    """Return the process id of a process descriptor, below 1 if the process has ended.

    The id is of the pid namespace of the procfs at *proc*, fs/pidfs.c of Linux.
    """
    with open(proc / "self" / "fdinfo" / str(pid_fd), "rb") as lines:
        fields = dict(line.split(b":", 1) for line in lines)
    return int(fields[b"Pid"])
