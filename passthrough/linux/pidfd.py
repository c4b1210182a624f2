"""The ends of processes, by polls of their process descriptors."""

import os
import select
import signal


def is_readable(fd: int, within_s: float = 0.0) -> bool:
    """Return whether a descriptor is readable, or becomes so *within_s*."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(1000 * within_s))


def has_ended(pid_fd: int, within_s: float = 0.0) -> bool:
    """Return whether the process of a process descriptor has ended, or ends *within_s*.

    It may not be reaped yet.
    """
    return is_readable(pid_fd, within_s)


def lives(pid: int) -> bool:
    """Return whether a process lives."""
    try:
        pid_fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not has_ended(pid_fd)
    finally:
        os.close(pid_fd)


def end_child(pid: int) -> None:
    """Kill a child, and reap it."""
    pid_fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os.close(pid_fd)
