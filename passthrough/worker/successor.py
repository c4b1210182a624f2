"""A worker that a guard has just made, and the one before it."""

import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Self

from passthrough.core.clone import exchange
from passthrough.worker import control, events
from passthrough.worker.control import NO_FD, End, Page
from passthrough.worker.trial import Trial

_WAKE: Final = b"\0"
_FD_SHIFT: Final = 32


def claim(page: Page, before: int) -> bool:
    """Make this process the worker, if the word of *page* is still *before*; return whether."""
    if page.word != before:
        return False
    fd = os.pidfd_open(os.getpid())
    word = fd << _FD_SHIFT | ((before & 0xFFFF_FFFF) + 1)
    if not exchange(page.memory, control.WORD_AT, before, word):
        # The other worker may have closed `fd` as lost, and use the number again.
        return False
    page.worker_pid = os.getpid()
    if (old := before >> _FD_SHIFT) < 1 << 31:
        os.close(old)
    return True


class Gone(NamedTuple):
    """A worker that has died, as its successor sees it."""

    pid: int
    status: int
    """The wait status, or STATUS_UNKNOWN."""
    noticed_s: float
    """When its guard noticed the death, time.monotonic()."""
    lived_s: float

    @classmethod
    def of_another_guard(cls, page: Page) -> Self:
        """Return the last worker, if no guard that lives has made it."""
        return cls(page.worker_pid, control.STATUS_UNKNOWN, time.monotonic(), math.inf)


class Fresh:
    """A worker that has just been made, and serves from now on."""

    def __init__(self, page: Page, gone: Gone | None, wake_fds: Sequence[int]) -> None:
        """*gone* is the worker before, or None for the first; *wake_fds* are the guards' pipes."""
        self._page = page
        self.gone: Final = gone
        self.reports: Final = page.settled == 0
        """True if no worker has served before."""
        self._wake_fds = wake_fds

    @property
    def kept(self) -> list[int]:
        """The descriptors that guards and this worker have opened since `ready` of `run`."""
        guards = [self._page.guard(index)[1] for index in range(control.GUARDS)]
        return [fd for fd in (self._page.worker_fd, *guards) if fd != NO_FD]

    def serves(self) -> None:
        """Note that the worker has taken over, and tell the guards."""
        spent_s = 0.0 if self.gone is None else time.monotonic() - self.gone.noticed_s
        self._page.settle(self._page.generation, round(1e6 * spent_s))
        self._page.waits = False
        for fd in self._wake_fds:
            with suppress(BlockingIOError):  # the guard is awake
                os.write(fd, _WAKE)
        if self.gone is not None:
            took_ms = 1e3 * spent_s
            events.tell(events.WORKER_REPLACED, worker=os.getpid(), takeover_ms=took_ms)

    def wait_for_commit(self, trial: Trial) -> None:
        """Wait until a worker on trial may serve."""
        trial.wait(self._wake_fds)

    def ends(self, status: int) -> None:
        """Note that the service ends with *status*, so that there is no successor."""
        self._page.end(End.ORDERLY, status)
