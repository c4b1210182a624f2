"""A worker process that speaks the hand-over and serves nothing, and the fork server to start it.

Run as a program, its first argument says what workers do instead of serving. They end as real ones
do: when the file system is unmounted, or when standard input closes.
"""

import contextlib
import errno
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from passthrough.worker import forkserver
from passthrough.worker.handover import Handover, Report, decode_handover, encode

COMMAND = (sys.executable, "-I", __file__)


def command(manner: str, *arguments: str | Path) -> tuple[str, ...]:
    """The command of a fork server whose workers behave in *manner*, one of `MANNERS` or `BARE`."""
    assert manner in {*MANNERS, *BARE}
    return (*COMMAND, manner, *map(str, arguments))


def _report(report: Report) -> None:
    os.write(sys.stdout.fileno(), encode(report))


def _stay(handover: Handover) -> None:
    """Wait for the end of the mount or of the plugin."""
    poll = select.poll()
    poll.register(sys.stdin.fileno(), select.POLLIN)
    poll.register(handover.fuse_fd, 0)
    poll.poll()


def _serve(handover: Handover) -> None:
    _report(Report(serving=True))
    _stay(handover)


def _serve_without_handles(handover: Handover) -> None:
    _report(Report(serving=True, without_handles="there are none"))
    _stay(handover)


def _refuse(_: Handover) -> int:
    _report(Report(serving=False, error="the kernel is too old"))
    return 1


def _die(_: Handover) -> int:
    sys.stderr.write("ERROR fake: out of luck\n")
    return 3


def _babble(_: Handover) -> None:
    os.write(sys.stdout.fileno(), b"hello?\n")


def _hang(handover: Handover) -> None:
    sys.stderr.write("INFO fake: thinking\n")
    sys.stderr.flush()
    _stay(handover)


def _leave(_: Handover) -> None:
    _report(Report(serving=True))


def _cling(_: Handover) -> None:
    """Serve, and end on nothing but SIGKILL."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _report(Report(serving=True))
    while True:
        time.sleep(3600)


def _talk(handover: Handover) -> None:
    sys.stderr.write("DEBUG a: one\nWARNING b: two\n  a line more\nINFO c: three\n")
    sys.stderr.flush()
    _serve(handover)


def _wait(handover: Handover) -> None:
    """Serve once somebody opens the FIFO for writing; tells by its own opening that it waits."""
    with contextlib.suppress(FileNotFoundError), open(sys.argv[2], "rb") as fifo:
        fifo.read()
    _serve(handover)


def _sleep() -> int:
    """Say so, and do nothing until the plugin goes; without a hand-over."""
    os.write(1, b"asleep\n")
    os.read(0, 1)
    return 0


def _bug() -> int:
    return 1 // 0


def _unforked() -> int:
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _unwatched(pid: int, flags: int = 0) -> int:  # noqa: ARG001 - as os.pidfd_open
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


# What does not care for a hand-over.
BARE: dict[str, Callable[[], int]] = {
    "sleep": _sleep,
    "bug": _bug,
    "unforked": _unforked,
    "unwatched": _sleep,
    "crowded": _sleep,
    "slow": _sleep,
}

MANNERS: dict[str, Callable[[Handover], int | None]] = {
    "serve": _serve,
    "serve without handles": _serve_without_handles,
    "refuse": _refuse,
    "die": _die,
    "babble": _babble,
    "hang": _hang,
    "leave": _leave,
    "cling": _cling,
    "talk": _talk,
    "wait": _wait,
}


def _work() -> int:
    manner = sys.argv[1]
    if manner in BARE:
        return BARE[manner]()
    return MANNERS[manner](decode_handover(sys.stdin.buffer.readline())) or 0


if __name__ == "__main__":
    if sys.argv[1] == "unforked":
        os.fork = BARE["unforked"]
    if sys.argv[1] == "unwatched":
        os.pidfd_open = _unwatched
    if sys.argv[1] == "crowded":  # by the standard streams and the copy of the control socket
        room = 4 + int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_NOFILE, (room, room))
    slow_s = float(sys.argv[2]) if sys.argv[1] == "slow" else 0.0
    forkserver.serve(_work, lambda _: time.sleep(slow_s))
