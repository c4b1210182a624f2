"""The fork server: a process that has everything loaded and becomes a worker in milliseconds.

`python -I -m passthrough.worker.forkserver`, started by the keeper with one end of a SOCK_SEQPACKET
socket as standard input. To start an interpreter and load its modules takes the better part of a
second on a busy machine, and every worker would have a copy of them all; forked workers share them.
Each packet asks for one worker. It holds the session that this will run, NUL, and a name for the
process; with it come descriptors, the first of them the *life socket* of this worker,
SOCK_SEQPACKET as well, the others for the worker, which knows them as 0, 1, 2 and so on. Over the
life socket goes one packet with the process id and a descriptor of the process (pidfd_open(2)), or
with an error number below zero if there can be none, and one more with the wait status when the
worker has ended. The fork server ends when nobody holds the other end of its standard input; its
workers have their own ties to the keeper.

There is one thread, and nothing is open but what is named here: a child closes all the rest.

The modules of a session are loaded when the first worker with that session is wanted. The plugin
could not fork itself, because it has threads. On a machine where a worker with an interpreter of
its own took 400 ms to serve and 25 MB of memory, a forked worker takes 25 ms and 7 MB
(benchmarks/volumes.py). The fork server ends with its plugin.
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

from passthrough.linux import privileges
from passthrough.options.config import Config, Session, session_of
from passthrough.worker import process, sandbox

log = logging.getLogger(__name__)

_CONTROL: Final = 0
_NAME: Final = b"passfs-forks"
_LONGEST_PACKET: Final = 256
# The life socket; standard input, output and error; what a worker serves. More is a mistake.
_MOST_DESCRIPTORS: Final = 16


class _Child(NamedTuple):
    pid: int
    life: socket.socket


def main() -> int:
    """Fork workers until the keeper ends; gives the exit status."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    sandbox.load()
    prepare(session_of(Config()))  # the one that volumes have unless they ask for the other
    serve(process.main, prepare)
    return 0


@cache
def prepare(session: str) -> None:
    """Load what *session* runs on, once for all the workers that follow."""
    with suppress(ImportError):  # which the worker will report
        process.load(Session(session))
    # What exists by now is garbage in no child: its pages stay shared, and are not looked through.
    gc.freeze()


def serve(work: Callable[[], int], prepare: Callable[[str], object] = str) -> None:
    """Fork a process for each packet on standard input; it does *work* and ends with its result.

    Before that, *prepare* is called here with the session that the packet names.
    """
    privileges.call_process(_NAME)
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
            if not fds or flags & socket.MSG_CTRUNC:  # no room, or not for all of them
                log.error("a worker is not started: too many open files")
                for given in fds:  # who asked sees its life socket closed
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
    """Fork one worker and tell who asked for it; gives its process descriptor."""
    life = socket.socket(fileno=fds[0])
    try:
        pid = os.fork()
        if pid == 0:
            _work(name, fds[1:], work)
        pid_fd = _watched(pid)
    except OSError as error:
        with life, suppress(OSError):
            life.send(b"%d" % -(error.errno or errno.EAGAIN))
        return None
    finally:
        for fd in fds[1:]:
            os.close(fd)
    with suppress(OSError):  # who asked may have gone
        socket.send_fds(life, [b"%d" % pid], [pid_fd])
    return pid_fd, _Child(pid, life)


def _watched(pid: int) -> int:
    """A descriptor of the child *pid*, which ends if there can be none: nobody would reap it."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _reap(pid_fd: int, child: _Child) -> None:
    """Tell how a worker has ended."""
    os.close(pid_fd)
    _, status = os.waitpid(child.pid, 0)
    with child.life, suppress(OSError):
        child.life.send(b"%d" % status)


def _work(name: bytes, fds: Sequence[int], work: Callable[[], int]) -> NoReturn:
    """Do *work*, in the child, with *fds* as 0, 1, 2 and so on, and nothing else open."""
    status = 1
    try:
        # A Ctrl-C in the plugin's terminal is for the plugin, which ends its workers in order.
        os.setsid()
        _arrange(fds)
        privileges.call_process(name)
        status = work()
    except Exception:
        log.exception("a worker ends by a mistake of this program")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _arrange(fds: Sequence[int]) -> None:
    beyond = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(fds)) for fd in fds]
    for number, fd in enumerate(beyond):
        os.dup2(fd, number, inheritable=False)
    # The numbers that objects of the parent still hold in this copy of its memory are never used.
    os.closerange(len(fds), os.sysconf("SC_OPEN_MAX"))


if __name__ == "__main__":
    sys.exit(main())
