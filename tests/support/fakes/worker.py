"""A worker process without a session, with its fork server: it answers the hand-over by a manner.

Run as a program, this is the fork server. Its first argument is the manner in which workers behave.
Workers serve no request, even if they report that they serve. Unless the manner says otherwise,
they end as real ones do: when the file system is unmounted, or when standard input closes.
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

from passthrough.worker import control, forkserver
from passthrough.worker.handover import Handover, Report, decode_handover, encode

COMMAND = (sys.executable, "-I", __file__)


def command(manner: str, *arguments: str | Path) -> tuple[str, ...]:
    """Return the command of a fork server with workers of *manner*, of `MANNERS` or `BARE`."""
    assert manner in {*MANNERS, *BARE}
    return (*COMMAND, manner, *map(str, arguments))


def _report(report: Report) -> None:
    os.write(sys.stdout.fileno(), encode(report))


def _stay(handover: Handover) -> None:
    """Wait until the mount or the plugin ends."""
    poll = select.poll()
    poll.register(sys.stdin.fileno(), 0)  # a successor may get KEEP twice
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


def _end_at_once(_: Handover) -> int:
    sys.stderr.write("ERROR fake: out of luck\n")
    return 3


def _report_garbage(_: Handover) -> None:
    os.write(sys.stdout.fileno(), b"hello?\n")


def _report_nothing(handover: Handover) -> None:
    sys.stderr.write("INFO fake: thinking\n")
    sys.stderr.flush()
    _stay(handover)


def _report_and_end(_: Handover) -> None:
    _report(Report(serving=True))


def _ignore_sigterm(_: Handover) -> None:
    """Serve, and end only on SIGKILL."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _report(Report(serving=True))
    while True:
        time.sleep(3600)


def _log(handover: Handover) -> None:
    sys.stderr.write("DEBUG a: one\nWARNING b: two\n  a line more\nINFO c: three\n")
    sys.stderr.flush()
    _serve(handover)


def _stand_by(handover: Handover) -> int:
    """Serve by workers that guards replace if they die."""

    def serve(first: bool) -> None:
        if first:
            _report(Report(serving=True, config=handover.config))
        _stay(handover)

    sys.path.append(str(Path(__file__).parents[3]))  # this program has no other way to the tests
    from tests.support.fakes import guards  # noqa: PLC0415

    assert handover.control_fd is not None
    before = handover.predecessor
    if before is not None:
        failure = sys.argv[2] if len(sys.argv) > 2 else ""
        return _take_over(handover, before.control_fd, failure, lambda: serve(first=False))
    return guards.stand_by(handover.control_fd, serve)


def _take_over(
    handover: Handover, before_fd: int, failure: str, serve: Callable[[], object]
) -> int:
    """Take over from another program's guards, or fail as *failure* says."""
    from tests.support.fakes import guards  # noqa: PLC0415

    assert handover.control_fd is not None
    if failure == "refuse":
        _report(Report(serving=False, error="refused: its tables have version 3"))
        return 1

    def ready(page: control.Page) -> None:
        if failure == "hang":
            signal.pause()
        page.waits = True
        if failure != "die":
            _report(Report(serving=True))
        if failure:  # in place of the note
            if failure.endswith("at the note"):
                os.read(0, 1)
            if failure.startswith("hang"):
                signal.pause()
            os.killpg(0, signal.SIGKILL)

    return guards.take_over(before_fd, handover.control_fd, ready, lambda _: serve())


def _wait_for_fifo(handover: Handover) -> None:
    """Serve once the test has opened the FIFO and closed it.

    The test's open(2) for writing returns when this worker waits.
    """
    with contextlib.suppress(FileNotFoundError), open(sys.argv[2], "rb") as fifo:
        fifo.read()
    _serve(handover)


def _sleep() -> int:
    """Write that it sleeps, and wait until the plugin ends; without a hand-over."""
    os.write(1, b"asleep\n")
    os.read(0, 1)
    return 0


def _bug() -> int:
    return 1 // 0


def _no_fork() -> int:
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _no_pidfd(pid: int, flags: int = 0) -> int:  # noqa: ARG001 - as os.pidfd_open
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


# Manners without a hand-over.
BARE: dict[str, Callable[[], int]] = {
    "sleep": _sleep,
    "bug": _bug,
    "no fork": _no_fork,
    "no pidfd": _sleep,
    "few descriptors": _sleep,
    "slow start": _sleep,
}

MANNERS: dict[str, Callable[[Handover], int | None]] = {
    "serve": _serve,
    "serve without handles": _serve_without_handles,
    "refuse": _refuse,
    "end at once": _end_at_once,
    "report garbage": _report_garbage,
    "report nothing": _report_nothing,
    "report and end": _report_and_end,
    "ignore SIGTERM": _ignore_sigterm,
    "log": _log,
    "stand by": _stand_by,
    "wait for FIFO": _wait_for_fifo,
}


def _work() -> int:
    manner = sys.argv[1]
    if manner in BARE:
        return BARE[manner]()
    line = sys.stdin.buffer.readline()
    return (MANNERS[manner](decode_handover(line)) or 0) if line else 1


if __name__ == "__main__":
    if sys.argv[1] == "no fork":
        os.fork = BARE["no fork"]
    if sys.argv[1] == "no pidfd":
        os.pidfd_open = _no_pidfd
    if sys.argv[1] == "few descriptors":
        # The standard streams and the duplicate of the control socket take 4 descriptors.
        room = 4 + int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_NOFILE, (room, room))
    slow_s = float(sys.argv[2]) if sys.argv[1] == "slow start" else 0.0
    forkserver.serve(_work, lambda _: time.sleep(slow_s))
