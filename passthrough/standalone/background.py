"""Serves a mount in processes of their own: they go on after this one, until the unmount.

The processes have a session of their own, setsid(2), so that no terminal ends them. They ask no
keeper whether they shall live: the mount alone decides. The log goes through a pipe to logger(1),
which ends with the last of them, because a process in a sandbox cannot connect to the system's log
again if that restarts.
"""

import os
import signal
import subprocess
import time
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec

from passthrough.standalone import interrupts, making
from passthrough.standalone.making import Made, Wanted
from passthrough.worker import forkserver, process, stderr
from passthrough.worker.handover import Handover, Report, decode_report

LOGGER: Final = ("logger", "--tag", "passfs", "--prio-prefix", "--priority", "daemon.warning")
# The name of the first process in ps(1), of which the kernel keeps 15 bytes.
_PROCESS_NAME: Final = b"passfs:"
_REPORT_BYTES: Final = 1 << 16
_END_S: Final = 2.0
_LOOK_S: Final = 0.01


class ServiceError(Exception):
    """A mount that no process serves; the text has the reason."""


def serve(wanted: Wanted) -> Made:
    """Mount; return once processes in the background answer requests.

    This process works in the root directory from then on.

    Raises:
        OptionError, OSError, ServiceError: there is no mount.
    """
    interrupts.treat_alike()
    made = making.make(wanted)
    child = 0
    try:
        interrupts.release()
        os.chdir("/")  # the processes keep no file system in use by a working directory
        child, reader = _start(made)
        report = _report(reader)
        interrupts.hold()  # too late: the mount is served, or is undone below
    except BaseException:
        _give_up(made, child)
        raise
    if not report.serving:
        _give_up(made, child)
        raise ServiceError(report.error or "its processes ended before they served; see the log")
    return made


def _start(made: Made) -> tuple[int, int]:
    """Start the first process; return its id, and a descriptor of its report.

    Takes the descriptors of the mount.
    """
    report_fd, reports_end = os.pipe2(os.O_CLOEXEC)
    null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    log_fd = _open_log()
    fds = (null_fd, reports_end, log_fd, made.fuse_fd, made.source_fd, made.lock_fd)
    numbers = {"fuse_fd": fds.index(made.fuse_fd), "source_fd": fds.index(made.source_fd)}
    handover = msgspec.structs.replace(made.handover, **numbers)
    about = os.fsdecode(made.entry.target)
    try:
        child = os.fork()
        if child == 0:
            name = _PROCESS_NAME + os.path.basename(made.entry.target)
            forkserver.run_child(name, fds, partial(_work, handover, about))
    finally:
        for fd in (null_fd, reports_end, log_fd):
            os.close(fd)
        made.close()
    return child, report_fd


def _open_log() -> int:
    """Return a pipe to logger(1), or /dev/null if there is none; the caller owns it."""
    reads, writes = os.pipe2(os.O_CLOEXEC)
    null = subprocess.DEVNULL
    try:
        logger = subprocess.Popen(
            LOGGER, stdin=reads, stdout=null, stderr=null, cwd="/", start_new_session=True
        )
    except FileNotFoundError:
        os.close(writes)
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    finally:
        os.close(reads)
    logger.returncode = 0  # it outlives this process, which does not wait for it
    return writes


def _work(handover: Handover, about: str) -> int:
    """Serve in the first process; return its exit status."""
    interrupts.handle(signal.SIG_DFL)
    process.log_to_stderr(handover.config.log_level, stderr.Prefixed(about))
    return process.serve_and_report(handover, keeper_fd=None)


def _report(reader: int) -> Report:
    """Wait for the report; without one it is empty."""
    with os.fdopen(reader, "rb", buffering=0) as stream:
        line = b""
        while not line.endswith(b"\n") and (part := stream.read(_REPORT_BYTES)):
            line += part
    return decode_report(line) if line else Report(serving=False)


def _give_up(made: Made, child: int) -> None:
    """End the processes, and unmount; a process that hangs in the kernel is left behind."""
    interrupts.handle(signal.SIG_IGN)  # another one would leave the mount
    if child:
        for kill in (os.killpg, os.kill):  # right after the fork it leads no group
            with suppress(ProcessLookupError):
                kill(child, signal.SIGKILL)
        until = time.monotonic() + _END_S
        while os.waitpid(child, os.WNOHANG)[0] == 0 and time.monotonic() < until:
            time.sleep(_LOOK_S)
    made.undo()
