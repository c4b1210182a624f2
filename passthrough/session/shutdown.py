"""The ends of a session besides unmounting: a signal, and the end of the keeper."""

import contextlib
import logging
import os
import select
import signal
from collections.abc import Callable, Iterator
from typing import Final

log = logging.getLogger(__name__)

WAKE: Final = b"\0"
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_READ_BYTES: Final = 512
RETIRE: Final = signal.SIGUSR1
"""A worker with a standby makes room for another one; no request is lost."""


@contextlib.contextmanager
def wakeup_pipe(*, retires: bool = False) -> Iterator[tuple[int, Callable[[], object]]]:
    """Yield the read end of a pipe, and a function that writes WAKE to the pipe.

    Each SIGTERM or SIGINT writes its number, also one that was blocked before; with *retires* each
    SIGUSR1, too. If the pipe is full, the function raises BlockingIOError.
    """
    numbers = (*_SIGNALS, RETIRE) if retires else _SIGNALS
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # Python's handlers do nothing: the interpreter writes the signal's number before they run.
    previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield read_fd, lambda: os.write(write_fd, WAKE)
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(read_fd)
        os.close(write_fd)


def log_end_of_keeper() -> None:
    """Log that the session ends because the keeper has ended."""
    log.debug("the keeper of this mount has ended; so does its worker")


def is_to_retire(wakeup_fd: int) -> bool:
    """Return whether RETIRE has come, and no signal that ends the service; empties the pipe."""
    with contextlib.suppress(BlockingIOError):
        numbers = os.read(wakeup_fd, _READ_BYTES)
        return RETIRE in numbers and not any(number in numbers for number in _SIGNALS)
    return False


def poll_of(*fds: int | None) -> select.poll:
    """Return a poll object that waits until one of *fds* is readable; None is skipped."""
    poll = select.poll()
    for fd in fds:
        if fd is not None:
            poll.register(fd, select.POLLIN)
    return poll
