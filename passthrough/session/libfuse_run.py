"""Running the `libfuse` session: pyfuse3's main loop, with one poll(2) where trio would be.

pyfuse3 is written for trio, but takes what it needs of it from one attribute, which may hold
something else: `pyfuse3.asyncio` puts asyncio there. Here it is `Scheduler`. Handlers never wait,
so one task serves every request, and the only thing that it ever waits for is the next one. A
real scheduler has nothing to choose from then, and choosing took trio two thirds of the processor
time of a request.

So nothing is ever suspended: `wait_readable` blocks the process until there is a request, or a
reason to end, which it tells pyfuse3 as trio would tell that the descriptor is being closed.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Self

from passthrough.core.filesystem import PassthroughFs
from passthrough.session import libfuse, shutdown

log = logging.getLogger(__name__)


def run(
    fs: PassthroughFs, fuse_fd: int, serving: Callable[[str], object], keeper_fd: int | None
) -> None:
    """Serve *fs* on *fuse_fd*, whose mount is made, until unmounted, SIGTERM or the keeper's end.

    As kernel.run does.

    Raises:
        OSError: *fuse_fd* is no descriptor of a FUSE mount, or the session with the kernel failed.
    """
    with shutdown.woken() as (woken_fd, _):
        scheduler = Scheduler(fuse_fd, woken_fd, keeper_fd)
        libfuse.serve(fs, fuse_fd, partial(serving, ""), scheduler)


class _EndedError(Exception):
    """There shall be no more requests."""


class _Lock:
    """A lock among tasks, of which there is one."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


class _Nursery:
    """Runs its tasks one after the other, when it is left."""

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
        """Have *function* run; nobody asks for the *name*."""
        del name
        self._tasks.append(function(*args))


class Scheduler:
    """What pyfuse3 finds where it looks for trio; the names are trio's."""

    ClosedResourceError: Final = _EndedError
    Lock: Final = _Lock
    open_nursery: Final = _Nursery
    name: Final = "requests"
    """Of the one task."""

    def __init__(self, fuse_fd: int, woken_fd: int, keeper_fd: int | None) -> None:
        """Wait for requests on *fuse_fd* until something comes from one of the other two."""
        self.lowlevel = self
        self._keeper_fd = keeper_fd
        self._fuse_fd = fuse_fd
        self._poll = shutdown.poll_of(fuse_fd, woken_fd, keeper_fd).poll

    def current_task(self) -> "Scheduler":
        """The task, of which its name is asked for."""
        return self

    def current_trio_token(self) -> None:
        """What other threads would call the task by; there are none."""

    async def wait_readable(self, _: int) -> None:
        """Wait for a request; none is taken when it is time to end.

        Raises:
            ClosedResourceError: it is.
        """
        for fd, _event in self._poll():
            if fd != self._fuse_fd:
                if fd == self._keeper_fd:
                    log.info(shutdown.KEEPER_ENDED)
                raise _EndedError
