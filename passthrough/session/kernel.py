"""The `kernel` session: FUSE on /dev/fuse or io_uring without libfuse, served by the compiled core.

The main thread answers INIT, starts the core's threads, and then samples them until the session
ends. The threads take no Python lock.
"""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Collection, Container, Sequence
from typing import Final, NoReturn

import msgspec

from passthrough.core.face import KEEPER_ENDED, Core
from passthrough.linux import kernel_features
from passthrough.options.choices import Passthrough, Transport
from passthrough.options.effective import Effective
from passthrough.session import negotiation, shutdown
from passthrough.session.abi import Init
from passthrough.session.backing import explain
from passthrough.session.negotiation import Agreed, Began, Offer
from passthrough.session.rare import Rare

log = logging.getLogger(__name__)

# Requests in flight may take this long when the session ends; after that they count as hung. At its
# own end and in Remove, the plugin waits longer than this for the worker.
_DRAIN_LIMIT_S: Final = 1.0
_DRAIN_INTERVAL_S: Final = 0.005
_FINISH_LIMIT_S: Final = 0.1
_FINISH_INTERVAL_S: Final = 0.0005


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """A session that has begun, for another program that goes on with it."""

    offered: Offer
    minor: int
    """Of the protocol that INIT has agreed on."""
    flags: int
    without_passthrough: str
    """As `begin` has returned it."""
    memory: tuple[int, int, int, int]
    """The descriptors of the core's memory."""

    @property
    def began(self) -> Began:
        """The part that a worker reports."""
        return Began(self.without_passthrough, self.offered.flags, self.flags)


class Served:
    """A volume that is ready to be served: its core, and what the core leaves to Python."""

    def __init__(
        self, config: Effective, source_fd: int, memory: Sequence[int] | None = None
    ) -> None:
        """Take *source_fd*, an O_PATH descriptor of a directory, or none with *memory* (`go_on`).

        Raises:
            OSError: the directory cannot be looked at, or memory has run out.
        """
        self.config = config
        self.rare = Rare(config)
        self.core = Core(config, source_fd, self.rare, memory)
        self.rare.core = self.core

    def note_descriptors(self, but: Container[int] = ()) -> None:
        """Take all descriptors that are open now for known, except *but*.

        A guard calls this after `begin`, or after `go_on`.
        """
        self.core.note_descriptors(but)

    def take_over(self, kept: Collection[int]) -> int:
        """Go on where the last worker died; *kept* are descriptors that others have opened.

        Return how many requests it had in hand.

        Raises:
            OSError: memory has run out, or (EPROTO) is damaged.
        """
        return self.core.take_over(kept)

    def close(self) -> None:
        """Close all descriptors, unless a thread is left: then the end of the process does so."""
        self.core.close()


prepare: Final = Served


def run(
    served: Served, fuse_fd: int, serving: Callable[[Began], object], keeper_fd: int | None
) -> None:
    """Serve on *fuse_fd*, the descriptor of a mount, until unmount, SIGTERM or the keeper's end.

    Answers the requests in flight before it returns. Takes *fuse_fd*. Calls *serving* when requests
    are answered. The keeper has ended if *keeper_fd*, a pipe, has no writer left. To be called by
    the main thread, which blocks in it.

    Raises:
        OSError: *fuse_fd* is no descriptor of a FUSE mount, the kernel speaks another protocol, or
            the connection broke.
    """
    try:
        without_passthrough = begin(served, fuse_fd)
    except BaseException:
        _leave_device(served.core, fuse_fd)
        raise
    began = begun(served, without_passthrough).began
    serve(served, fuse_fd, lambda: serving(began), keeper_fd)


def begin(served: Served, fuse_fd: int) -> str:
    """Answer INIT on *fuse_fd*; return why reads and writes do not pass through, or an empty text.

    A guard calls this before there is a worker. No thread is left.

    Raises:
        OSError: as of `run`; the descriptor stays the caller's.
    """
    # Not os.set_blocking(): Python calls ioctl(2) FIONBIO for it, which a sandbox refuses.
    flags = fcntl.fcntl(fuse_fd, fcntl.F_GETFL)
    fcntl.fcntl(fuse_fd, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
    served.core.use_device(fuse_fd)
    _negotiate(served, fuse_fd)
    return _without_passthrough(served)


def begun(served: Served, without_passthrough: str) -> Begun:
    """Return how a session has begun, after `begin` or `go_on`, with the result of that."""
    offered, agreed = served.rare.offered, served.rare.agreed
    if offered is None or agreed is None:
        raise ValueError("the session has not begun")
    return Begun(
        offered=offered,
        minor=agreed.minor,
        flags=int(agreed.flags),
        without_passthrough=without_passthrough,
        memory=served.core.memory,
    )


def agreed_again(config: Effective, before: Begun) -> Agreed:
    """Return what INIT has agreed on, for another program.

    Raises:
        OSError: EPROTO, this program would have agreed on something else.
    """
    agreed = negotiation.agree(before.offered, config)
    if agreed.flags != before.flags:
        differing = Init(int(agreed.flags) ^ before.flags)
        raise OSError(errno.EPROTO, f"INIT has agreed otherwise on {differing.name}")
    return agreed._replace(minor=before.minor)


def go_on(config: Effective, before: Begun, fuse_fd: int) -> Served:
    """Return a volume that another program has served; this process has its descriptors.

    A worker then takes over. The processes of the other program have ended, or serve no more.

    Raises:
        OSError: the memory is not what it has to be, or as of `agreed_again`.
    """
    agreed = agreed_again(config, before)
    served = Served(config, -1, before.memory)
    served.rare.offered, served.rare.agreed = before.offered, agreed
    passes = bool(agreed.flags & Init.PASSTHROUGH) and not before.without_passthrough
    served.core.agree(int(agreed.flags), agreed.minor, passes)
    served.core.use_device(fuse_fd)
    return served


def serve(
    served: Served,
    fuse_fd: int,
    serving: Callable[[], object],
    keeper_fd: int | None,
    *,
    unable: Callable[[OSError], object] = lambda _: None,
    ending: Callable[[int], object] = lambda _: None,
    retire: Callable[[], NoReturn] | None = None,
) -> None:
    """Serve as `run` does, after `begin`, or after a worker that has died.

    Calls *unable* with an OSError, and *ending* with the exit status once the end is decided,
    before it closes anything. On SIGUSR1 calls *retire* instead, once no request is served
    any more; a successor goes on.

    Raises:
        OSError: there is no thread to be had, or none for a request of the worker before; or the
            connection broke.
    """
    core = served.core
    try:
        with shutdown.wakeup_pipe(retires=retire is not None) as (wakeup_fd, _):
            try:
                try:
                    core.start(_processors(served))
                    serving()
                    end = core.watch(wakeup_fd, -1 if keeper_fd is None else keeper_fd)
                except OSError as error:
                    unable(error)
                    raise
                if retire is not None and shutdown.is_to_retire(wakeup_fd):
                    core.stop()
                    _finish(core)
                    log.debug("makes room; requests left: %d", core.in_flight())
                    retire()
                if end == KEEPER_ENDED:
                    shutdown.log_end_of_keeper()
                log.debug("the session ends; requests in service: %d", core.in_flight())
                ending(0)
            except BaseException:
                ending(1)
                raise
            finally:
                core.stop()
        _drain(core)
    finally:
        _leave_device(core, fuse_fd)


def _leave_device(core: Core, fuse_fd: int) -> None:
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
    log.debug("reads and writes do not pass through: %s", why)
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


def _finish(core: Core) -> None:
    """Wait for the requests in service, but for those that wait themselves; not for long.

    A successor serves those that are left.
    """
    deadline = time.monotonic() + _FINISH_LIMIT_S
    while core.in_flight() > core.waiting() and time.monotonic() < deadline:
        time.sleep(_FINISH_INTERVAL_S)


def _drain(core: Core) -> None:
    """Wait until the requests in flight are answered, for 1 s at most."""
    deadline = time.monotonic() + _DRAIN_LIMIT_S
    while core.in_flight() and time.monotonic() < deadline:
        time.sleep(_DRAIN_INTERVAL_S)
    if left := core.in_flight():
        log.warning("%d requests hang in the host's file system and are left unanswered", left)
