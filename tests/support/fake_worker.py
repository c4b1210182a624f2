"""A worker process that speaks the hand-over and serves nothing, run as a program.

Its first argument says what it does instead of serving. It ends as a real one does: when its file
system is unmounted, or when its standard input closes.
"""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from passthrough.handover import Handover, Report, decode_handover, encode

COMMAND = (sys.executable, "-I", __file__)


def command(manner: str, *arguments: str | Path) -> tuple[str, ...]:
    """The command of a worker that behaves in *manner*, one of `MANNERS`."""
    assert manner in MANNERS
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


def _refuse(_: Handover) -> None:
    _report(Report(serving=False, error="the kernel is too old"))
    sys.exit(1)


def _die(_: Handover) -> None:
    sys.stderr.write("ERROR fake: out of luck\n")
    sys.exit(3)


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


MANNERS: dict[str, Callable[[Handover], None]] = {
    "serve": _serve,
    "refuse": _refuse,
    "die": _die,
    "babble": _babble,
    "hang": _hang,
    "leave": _leave,
    "cling": _cling,
    "talk": _talk,
    "wait": _wait,
}


if __name__ == "__main__":
    MANNERS[sys.argv[1]](decode_handover(sys.stdin.buffer.readline()))
