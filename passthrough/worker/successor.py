"""A worker that a guard has just made, and the one before it."""

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from passthrough.worker import control
from passthrough.worker.control import NO_FD, End, Page
from passthrough.worker.trial import Trial

log = logging.getLogger(__name__)

_WAKE: Final = b"\0"


class Gone(NamedTuple):
    """A worker that has died, as its successor sees it."""

    pid: int
    status: int
    """The wait status, or STATUS_UNKNOWN."""
    noticed_s: float
    """When its guard noticed the death, time.monotonic()."""
    lived_s: float


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
            log.warning("worker %d took over after %.1f ms", os.getpid(), 1e3 * spent_s)

    def wait_for_commit(self, trial: Trial) -> None:
        """Wait until a worker on trial may serve."""
        trial.wait(self._wake_fds)

    def ends(self, status: int) -> None:
        """Note that the service ends with *status*, so that there is no successor."""
        self._page.end(End.ORDERLY, status)
