"""The first worker of a program that goes on in place of another one (predecessor.py).

It takes over, and then waits. Its guard reports to the keeper, and waits for KEEP. Then the guard
commits, and the worker serves. All later workers serve at once.

The worker ends with its guard before the commit: while it takes over by a signal of the kernel, and
while it waits because it sees the guard's end. The second guard, which is made before the worker,
ends with the first one, too. If the first guard dies after the commit, both go on.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from passthrough.linux import pidfd, privileges
from passthrough.worker import events
from passthrough.worker.control import Page
from passthrough.worker.handover import KEEP
from passthrough.worker.predecessor import Predecessor

_WORKER_LIMIT_S: Final = 10.0
_KEEP_LIMIT_S: Final = 3.0
_WAKE: Final = b"\0"


class Trial:
    """The work of the first guard and the first worker until the commit."""

    def __init__(
        self, before: Predecessor, page: Page, keeper_fd: int, report: Callable[[], object]
    ) -> None:
        """*page* is this program's; *report* tells the keeper that all is ready."""
        self.before: Final = before
        self._page = page
        self.keeper_fd: Final = keeper_fd
        self.report: Final = report
        self._reported = False
        self._until_s = time.monotonic() + _WORKER_LIMIT_S
        self._go, self._ready = (os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) for _ in range(2))

    # In the worker

    def begin(self) -> None:
        """End with the guard from now on; to be called before the worker takes over."""
        if not self.before.is_replaced:
            privileges.die_with_parent(signal.SIGKILL)
            self._require_guard()

    def wait(self, wake_fds: Sequence[int]) -> None:
        """Wait until the worker may serve; *wake_fds* are the guards' pipes."""
        if self.before.is_replaced:
            return
        privileges.die_with_parent(0)
        for fd in (self._ready[1], *wake_fds):
            with suppress(BlockingIOError):
                os.write(fd, _WAKE)
        poll = select.poll()
        for fd in (self._go[0], self._page.guard(0)[1]):
            poll.register(fd, select.POLLIN)
        poll.poll()
        self._require_guard()

    def _require_guard(self) -> None:
        """End unless the guard lives, or has committed."""
        if pidfd.has_ended(self._page.guard(0)[1]) and not self.before.is_replaced:
            os._exit(0)

    # In the guard

    @property
    def left_s(self) -> float:
        """How long to wait for the worker or the keeper at most."""
        return max(0.0, self._until_s - time.monotonic())

    def is_kept(self) -> bool | None:
        """Report when the worker is ready; return the keeper's decision, None if there is none yet.

        No process serves meanwhile, so the time is limited.
        """
        if not self._reported and pidfd.is_readable(self._ready[0]):
            self._reported = self._page.waits = True
            self._until_s = time.monotonic() + _KEEP_LIMIT_S
            with suppress(BrokenPipeError):  # the next keeper finds that the worker waits
                self.report()
        if not pidfd.is_readable(self.keeper_fd):
            return None if self.left_s else False
        return os.read(self.keeper_fd, len(KEEP)) == KEEP and self._reported

    def commit(self) -> None:
        """Have the worker serve, and end the other program."""
        self.before.commit()
        os.write(self._go[1], _WAKE)
        self.before.dismiss()
        waited_ms = 1e3 * (time.monotonic() - self.before.stopped_s)
        events.tell(events.TAKEN_OVER, without_service_ms=waited_ms)
