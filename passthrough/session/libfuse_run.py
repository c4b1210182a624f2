"""The `libfuse` session's event loop: pyfuse3's main loop over one poll(2) in place of trio.

pyfuse3 is written for trio, but takes all that it needs of trio from one module attribute, which
may be replaced: `pyfuse3.asyncio` puts asyncio there. This module puts `Scheduler` there. No
handler awaits anything, so one task serves every request, and awaits only the next one. trio spent
two thirds of a request's processor time on scheduling this one task.

So no task is ever suspended: `wait_readable` blocks the process until there is a request or a
reason to end. At the end it raises the error that trio raises if the descriptor is being closed.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Self

from passthrough.core.binding import Lock, Requests
from passthrough.core.face import Core
from passthrough.session import libfuse, shutdown
from passthrough.session.kernel import Served
from passthrough.session.negotiation import Began

log = logging.getLogger(__name__)

prepare: Final = Served


def run(
    served: Served, fuse_fd: int, serving: Callable[[Began], object], keeper_fd: int | None
) -> None:
    """Serve on *fuse_fd*, the descriptor of a mount, until unmount, SIGTERM or keeper's end.

    The arguments are those of kernel.run.

    Raises:
        OSError: *fuse_fd* is no descriptor of a FUSE mount, or the session with the kernel failed.
    """
    with shutdown.wakeup_pipe() as (wakeup_fd, _):
        scheduler = Scheduler(fuse_fd, wakeup_fd, keeper_fd, served.core)
        # read(2) on /dev/fuse reports the end of the connection by ECONNABORTED in place of ENODEV
        # if it comes while a request is being read; pyfuse3 knows ENODEV alone.
        with contextlib.suppress(ConnectionAbortedError):
            libfuse.serve(served, fuse_fd, partial(serving, Began()), scheduler)
        log.debug("the session ends")


class _EndedError(Exception):
    """The session ends."""


class _Nursery:
    """Runs its tasks one after the other, at the end of the `async with` block."""

    def __init__(self) -> None:
        self._tasks: list[Awaitable[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            await task

    def start_soon(
        self, function: Callable[..., Awaitable[None]], *args: object, name: str
    ) -> None:
        """Run *function* at the end of the block; pyfuse3 never reads the *name*."""
        del name
        self._tasks.append(function(*args))


class Scheduler:
    """The stand-in for the module trio, with the names that pyfuse3 uses."""

    ClosedResourceError: Final = _EndedError
    Lock: Final = Lock
    open_nursery: Final = _Nursery
    name: Final = "requests"
    """The name of the one task."""

    def __init__(
        self, fuse_fd: int, wakeup_fd: int, keeper_fd: int | None, core: Core | None = None
    ) -> None:
        """Wait for requests on *fuse_fd* until another of the descriptors is readable."""
        self.lowlevel = self
        self._keeper_fd = keeper_fd
        self.wait_readable: Final = Requests(
            fuse_fd, wakeup_fd, -1 if keeper_fd is None else keeper_fd, self._end, core
        ).wait_readable
        """Wait for a request, or raise ClosedResourceError."""

    def current_task(self) -> "Scheduler":
        """Return the one task, which pyfuse3 asks for its name."""
        return self

    def current_trio_token(self) -> None:
        """Return None: no other thread calls into the task."""

    def _end(self, fd: int) -> Exception:
        """Return the error that ends the session because *fd* is readable."""
        if fd == self._keeper_fd:
            shutdown.log_end_of_keeper()
        return _EndedError()
