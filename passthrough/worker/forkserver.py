"""The fork server: has the modules of a worker loaded, and forks a worker in milliseconds.

The keeper starts `python -I -m passthrough.worker.forkserver`, with one end of a SOCK_SEQPACKET
socket as standard input. On a busy machine it takes the better part of a second to start an
interpreter and load the modules, and every worker would have its own copy of them. Forked workers
share the copy.

Each packet on standard input asks for one worker. It holds the session that the worker runs, NUL,
and a name for the process. The descriptors in the packet are the worker's *status socket*, also
SOCK_SEQPACKET, and then the worker's own, which become its descriptors 0, 1, 2 and so on. The fork
server sends two packets over the status socket. The first has the process id and a process
descriptor (pidfd_open(2)), or a negative error number if there is no worker. The second has the
wait status when the worker has ended.

The fork server ends when no process holds the other end of its standard input. It does not end its
workers: each has its own pipe to the keeper.

The fork server has one thread. Its open descriptors are the standard streams, a duplicate of
standard input, and a status socket and a process descriptor for each worker. A child closes all
that are not its own.

The plugin cannot fork workers itself, because it has threads. The fork server loads the modules of
the default session at its start, and those of another session before the first worker with it. On a
machine where a worker with an interpreter of its own took 400 ms to serve and 25 MB of memory, a
forked worker takes 25 ms and 7 MB (benchmarks/volumes.py).
"""

import errno
import fcntl
import gc
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Final, NamedTuple, NoReturn

from passthrough.linux import kernel_features, privileges
from passthrough.options.choices import LogLevel, SessionKind
from passthrough.options.sessions import automatic
from passthrough.worker import process, sandbox

log = logging.getLogger(__name__)

_CONTROL: Final = 0
_NAME: Final = b"passfs-forks"
_LONGEST_PACKET: Final = 256
# An upper limit. A worker gets seven: status socket, three standard streams, /dev/fuse, source and
# control page.
_MOST_DESCRIPTORS: Final = 16


class _Child(NamedTuple):
    pid: int
    status_socket: socket.socket


def main() -> int:
    """Fork workers until the keeper ends; return the exit status."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    sandbox.preload()
    process.set_level(LogLevel.DEBUG)  # of the workers
    prepare(automatic(kernel_features.linux_release()).session)  # the default of volumes
    serve(process.main, prepare)
    return 0


@cache
def prepare(session: str) -> None:
    """Load the modules of *session*, for all workers that follow."""
    with suppress(ImportError):  # the worker reports it
        process.load(SessionKind(session))
    # A child's garbage collector then skips the objects that exist now, so their pages stay shared.
    gc.freeze()


def serve(work: Callable[[], int], prepare: Callable[[str], object] = str) -> None:
    """Fork a process for each packet on standard input; its exit status is the result of *work*.

    Before each fork, *prepare* is called in this process with the session of the packet.
    """
    privileges.name_thread(_NAME)
    control = socket.socket(fileno=os.dup(_CONTROL))
    poll = select.poll()
    poll.register(control.fileno(), select.POLLIN)
    children: dict[int, _Child] = {}
    while True:
        for fd, _ in poll.poll():
            if fd != control.fileno():
                poll.unregister(fd)
                _reap(fd, children.pop(fd))
                continue
            packet, fds, flags, _ = socket.recv_fds(control, _LONGEST_PACKET, _MOST_DESCRIPTORS)
            if not packet:
                return
            if not fds or flags & socket.MSG_CTRUNC:  # no room for the descriptors, or not for all
                log.error("a worker is not started: too many open files")
                for given in fds:  # the keeper sees that the status socket is closed
                    os.close(given)
                continue
            session, _, name = packet.partition(b"\0")
            prepare(session.decode())
            started = _start(name, fds, work)
            if started is not None:
                pid_fd, child = started
                children[pid_fd] = child
                poll.register(pid_fd, select.POLLIN)


def _start(name: bytes, fds: Sequence[int], work: Callable[[], int]) -> tuple[int, _Child] | None:
    """Fork one worker and report it over its status socket; return its process descriptor."""
    status_socket = socket.socket(fileno=fds[0])
    try:
        pid = os.fork()
        if pid == 0:
            run_child(name, fds[1:], work)
        pid_fd = _open_pidfd(pid)
    except OSError as error:
        with status_socket, suppress(OSError):
            status_socket.send(b"%d" % -(error.errno or errno.EAGAIN))
        return None
    finally:
        for fd in fds[1:]:
            os.close(fd)
    with suppress(OSError):  # the keeper may have ended
        socket.send_fds(status_socket, [b"%d" % pid], [pid_fd])
    return pid_fd, _Child(pid, status_socket)


def _open_pidfd(pid: int) -> int:
    """Return a descriptor of the child *pid*; if there is none, kill the child and reap it.

    Without a descriptor the fork server would not learn of the child's end.
    """
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _reap(pid_fd: int, child: _Child) -> None:
    """Report over the status socket how a worker has ended."""
    os.close(pid_fd)
    _, status = os.waitpid(child.pid, 0)
    with child.status_socket, suppress(OSError):
        child.status_socket.send(b"%d" % status)


def run_child(name: bytes, fds: Sequence[int], work: Callable[[], int]) -> NoReturn:
    """Do *work* in the child, with *fds* as 0, 1, 2 and so on, and no other open descriptor.

    The child has a session of its own; *name* is its name in ps(1).
    """
    status = 1
    try:
        # Ctrl-C in the terminal shall reach the parent alone, which ends its workers.
        os.setsid()
        _renumber(fds)
        privileges.name_thread(name)
        status = work()
    except Exception:
        log.exception("a worker ends because of a bug in passfs")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _renumber(fds: Sequence[int]) -> None:
    beyond = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(fds)) for fd in fds]
    for number, fd in enumerate(beyond):
        os.dup2(fd, number, inheritable=False)
    # Objects copied from the parent still hold closed numbers; the child never uses these objects.
    os.closerange(len(fds), os.sysconf("SC_OPEN_MAX"))


if __name__ == "__main__":
    sys.exit(main())
