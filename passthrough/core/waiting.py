"""Waiting for a lock: a system call that may last for ever, until its caller is called back.

The thread that waits is inside the kernel, and nothing but a signal gets it out. A signal that
comes just before the call begins is lost, so it is sent until the thread has left; and it is sent
only while the thread is known to be on its way in or out, never to what it does afterwards.

A thread that waits inside the host's call keeps its place in the host's queue and costs nothing,
which asking again and again would not. At most 1,024 threads wait, and the next request gets
ENOLCK; they do not count as threads that serve. If no more threads can be had (a pids limit), the
last free thread waits for no lock: its caller gets ENOLCK, because the unlock will need the thread.
Over io_uring that holds for the threads of each processor.
"""

import errno
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from passthrough.linux import filecalls
from passthrough.linux.errors import os_error

# Ignored unless somebody handles it, so that one too many would harm nobody.
_SIGNAL: Final = signal.SIGURG
_AGAIN_S: Final = 0.002
# Each waits in a thread of its own. One volume's users may not use up the machine's.
_MOST: Final = 1024
# How many calls back are remembered that came before what they are for, or after it.
_EARLY: Final = 256


class Wait:
    """One call that waits, and can be called back from another thread."""

    __slots__ = ("_called_back", "_left", "_lock", "_thread")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._thread = 0
        self._called_back = False

    def run(self, call: Callable[[], None]) -> None:
        """Make *call*, which waits, and ends with EINTR when a signal comes.

        Raises:
            OSError: EINTR, it was called back; whatever else *call* raises.
        """
        with self._lock:
            self._thread = threading.get_ident()
        try:
            while not self._called_back:
                try:
                    return call()
                except InterruptedError:
                    pass  # by whom, the loop's condition says: it may have been for the process
            raise os_error(errno.EINTR)
        finally:
            with self._lock:
                self._thread = 0
            self._left.set()

    def call_back(self) -> None:
        """End the call; returns when the thread has left it, or will not enter it any more."""
        with self._lock:
            self._called_back = True
        while True:
            with self._lock:
                if not self._thread:
                    return
                signal.pthread_kill(self._thread, _SIGNAL)
            self._left.wait(_AGAIN_S)


class Waits:
    """All calls that wait, by the numbers that their callers know them by; none comes twice."""

    def __init__(self) -> None:
        filecalls.interrupt_calls_on(_SIGNAL)
        self._lock = threading.Lock()
        self._waits: dict[int, Wait] = {}
        self._early: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._waits)

    @contextmanager
    def waiting(self, number: int) -> Iterator[Wait]:
        """A guard: inside it, the Wait that it gives can be called back by *number*.

        Raises:
            OSError: EINTR, it was called back already; ENOLCK, too many wait.
        """
        wait = Wait()
        with self._lock:
            if number in self._early:
                del self._early[number]
                raise os_error(errno.EINTR)
            if len(self._waits) >= _MOST:
                raise os_error(errno.ENOLCK)
            self._waits[number] = wait
        try:
            yield wait
        finally:
            with self._lock:
                del self._waits[number]

    def call_back(self, number: int) -> None:
        """End the wait called *number*, also one that is about to begin; of others, nothing."""
        with self._lock:
            wait = self._waits.get(number)
            if wait is None:
                self._early[number] = None
                if len(self._early) > _EARLY:
                    del self._early[next(iter(self._early))]
        if wait is not None:
            wait.call_back()
