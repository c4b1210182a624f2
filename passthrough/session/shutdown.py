"""What ends a session other than the kernel: a signal, and the end of its keeper."""

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from typing import Final

WAKE: Final = b"\0"
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

KEEPER_ENDED: Final = "the keeper of this mount has ended; so does its worker"
"""What is logged when it has, by either session."""


@contextlib.contextmanager
def woken() -> Iterator[tuple[int, Callable[[], object]]]:
    """A descriptor to read from: WAKE for each call of the function, the numbers of signals."""
    woken_fd, waking_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # Python's own handlers do nothing: what counts is the byte that comes before they run.
    previous = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    signal.set_wakeup_fd(waking_fd, warn_on_full_buffer=False)
    try:
        yield woken_fd, lambda: os.write(waking_fd, WAKE)
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(woken_fd)
        os.close(waking_fd)


def poll_of(*fds: int | None) -> select.poll:
    """What waits until there is something to read from one of *fds*; None is none."""
    poll = select.poll()
    for fd in fds:
        if fd is not None:
            poll.register(fd, select.POLLIN)
    return poll
