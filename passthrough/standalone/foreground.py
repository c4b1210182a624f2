"""Serves a mount until it is unmounted, or this process gets SIGINT or SIGTERM.

A child process serves, inside the sandbox. This process stays outside to unmount at the end. The
child ends when the pipe between the two does. If the child is a guard and dies, others go on
(standby.py): they become children of this process then.
"""

import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress

import msgspec

from passthrough.linux import privileges
from passthrough.options.table import OptionError
from passthrough.standalone import interrupts, making
from passthrough.standalone.making import Made, Wanted
from passthrough.worker import control, process
from passthrough.worker.handover import Handover, Report
from passthrough.worker.sandbox import SandboxError

log = logging.getLogger(__name__)


def serve(wanted: Wanted, serving: Callable[[], object], refuse: Callable[[Exception], int]) -> int:
    """Mount, have a child process serve, unmount; return the exit status.

    *serving* is called once requests are answered. *refuse* shows an error that ends the service,
    and returns the exit status; a child process calls it, too.

    Raises:
        OptionError, OSError: there is no mount.
    """
    interrupts.treat_alike()  # until _serve sets its handler
    control_fd = control.make()
    try:
        made = making.make(wanted)
    except BaseException:
        os.close(control_fd)
        raise
    try:
        interrupts.release()
        return _serve(made, control_fd, serving, refuse)
    finally:
        interrupts.handle(signal.SIG_IGN)  # another one would leave the mount
        os.close(made.lock_fd)
        made.undo()


def _serve(
    made: Made,
    control_fd: int,
    serving: Callable[[], object],
    refuse: Callable[[Exception], int],
) -> int:
    """Have a child serve until it ends or this process is signalled; return the exit status.

    The child cannot leave its sandbox, so this process stays outside to unmount.
    """
    childs_end, our_end = os.pipe()
    to_close = [our_end]

    def stop(*_: object) -> None:
        while to_close:
            os.close(to_close.pop())

    interrupts.handle(stop)
    privileges.adopt_orphans()
    handover = msgspec.structs.replace(made.handover, control_fd=control_fd)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # Ctrl-C signals the child too. Until the session handles signals (shutdown.py), the
            # child ignores them and ends with the pipe.
            interrupts.handle(signal.SIG_IGN)
            stop()
            status = _child(handover, lambda _: serving(), childs_end, refuse)
        finally:
            os._exit(status)
    for fd in (childs_end, made.fuse_fd, made.source_fd):
        os.close(fd)
    _, status = os.waitpid(child, 0)
    end_status = _wait_for_others(control_fd)
    if end_status is not None:
        return end_status
    if os.WIFSIGNALED(status):
        return refuse(ChildProcessError(f"killed by {signal.Signals(os.WTERMSIG(status)).name}"))
    return os.waitstatus_to_exitcode(status)


def _wait_for_others(control_fd: int) -> int | None:
    """Return the exit status in the control page, once no process serves; None: there is none."""
    if not control.read(control_fd).ended:
        with suppress(ChildProcessError):
            while True:
                os.wait()
    state = control.read(control_fd)
    return state.end_status if state.ended else None


def _child(
    handover: Handover,
    serving: Callable[[Report], object],
    parent_fd: int,
    refuse: Callable[[Exception], int],
) -> int:
    process.log_to_stderr(handover.config.log_level)
    try:
        return process.serve(handover, serving, parent_fd)
    except (OSError, OptionError, SandboxError) as error:
        return refuse(error)
    except Exception:
        log.exception("volume %s", handover.volume)
        return 1
