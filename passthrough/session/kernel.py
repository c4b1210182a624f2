"""The `kernel` session: FUSE on /dev/fuse or io_uring without libfuse, served by the compiled core.

The main thread answers INIT, starts the core's threads, and then samples them until the session
ends. The threads take no Python lock.
"""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from passthrough.linux import kernel_features
from passthrough.native.face import KEEPER_ENDED, Core
from passthrough.options.choices import Passthrough, Transport
from passthrough.options.effective import Effective
from passthrough.session import shutdown
from passthrough.session.abi import Init
from passthrough.session.backing import explain
from passthrough.session.rare import Rare

log = logging.getLogger(__name__)

# Requests in flight may take this long when the session ends; after that they count as hung. At its
# own end and in Remove, the plugin waits longer than this for the worker.
_DRAIN_LIMIT_S: Final = 1.0
_DRAIN_INTERVAL_S: Final = 0.005


class Served:
    """A volume that is ready to be served: its core, and what the core leaves to Python."""

    def __init__(self, config: Effective, source_fd: int) -> None:
        """Take *source_fd*, an O_PATH descriptor of a directory.

        Raises:
            OSError: the directory cannot be looked at, or memory has run out.
        """
        self.config = config
        self.rare = Rare(config)
        self.core = Core(config, source_fd, self.rare)
        self.rare.core = self.core

    def close(self) -> None:
        """Close all descriptors, unless the host holds a thread up."""
        self.core.close()


prepare: Final = Served


def run(
    served: Served, fuse_fd: int, serving: Callable[[str], object], keeper_fd: int | None
) -> None:
    """Serve on *fuse_fd*, the descriptor of a mount, until unmount, SIGTERM or the keeper's end.

    Answers the requests in flight before it returns. Takes *fuse_fd*. Calls *serving* when requests
    are answered. The keeper has ended if *keeper_fd*, a pipe, has no writer left. To be called by
    the main thread, which blocks in it.

    Raises:
        OSError: *fuse_fd* is no descriptor of a FUSE mount, the kernel speaks another protocol, or
            the connection broke.
    """
    core = served.core
    # Not os.set_blocking(): Python calls ioctl(2) FIONBIO for it, which a sandbox refuses.
    flags = fcntl.fcntl(fuse_fd, fcntl.F_GETFL)
    fcntl.fcntl(fuse_fd, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
    core.use_device(fuse_fd)
    try:
        _negotiate(served, fuse_fd)
        without_passthrough = _without_passthrough(served)
        with shutdown.wakeup_pipe() as (wakeup_fd, _):
            try:
                core.start(_processors(served))
                serving(without_passthrough)
                end = core.watch(wakeup_fd, -1 if keeper_fd is None else keeper_fd)
                if end == KEEPER_ENDED:
                    log.info(shutdown.KEEPER_ENDED)
            finally:
                core.stop()
        _drain(core)
    finally:
        core.use_device(-1)
        if not core.in_flight():  # a thread that the host holds up may still write by this number
            os.close(fuse_fd)


def _negotiate(served: Served, fuse_fd: int) -> None:
    """Answer INIT, which the kernel sends before any other request."""
    while served.rare.agreed is None:
        if not served.core.serve_one():
            raise OSError(errno.EBADF, f"descriptor {fuse_fd} belongs to no FUSE mount")
        if served.rare.broken is not None:
            raise served.rare.broken


def _without_passthrough(served: Served) -> str:
    """Return why the kernel passes no reads and writes through although the options allow it.

    The text is empty if the kernel passes them through, or if the options do not allow it.
    """
    if not served.rare.uses(Init.PASSTHROUGH):
        return served.rare.why_not(Init.PASSTHROUGH)
    number = served.core.try_passthrough()
    if not number:
        return ""
    why = explain(number)
    if served.config.passthrough is Passthrough.ON:
        raise OSError(errno.EPERM, f"option 'passthrough': 'on' cannot be had: {why}")
    served.core.pass_nothing_through()
    return why


def _processors(served: Served) -> Sequence[int]:
    """Return all processors if requests come over io_uring, otherwise none."""
    if served.config.transport is not Transport.IO_URING:
        return ()
    if not served.rare.uses(Init.OVER_IO_URING):
        why = served.rare.why_not(Init.OVER_IO_URING)
        raise OSError(errno.EPROTO, f"option 'transport': 'io_uring' cannot be had: {why}")
    return kernel_features.possible_processors()


def _drain(core: Core) -> None:
    """Wait until the requests in flight are answered, for 1 s at most."""
    deadline = time.monotonic() + _DRAIN_LIMIT_S
    while core.in_flight() and time.monotonic() < deadline:
        time.sleep(_DRAIN_INTERVAL_S)
    if left := core.in_flight():
        log.warning("%d requests hang in the host's file system and are left unanswered", left)
