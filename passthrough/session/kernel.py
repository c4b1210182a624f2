"""The `kernel` session: FUSE on /dev/fuse or io_uring without libfuse, in a pool of threads.

The main thread answers INIT, starts the threads, and then samples them until the session ends.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.squashed import filesystem_of
from passthrough.linux import kernel_features
from passthrough.options.choices import Passthrough, Transport
from passthrough.session import shutdown
from passthrough.session.abi import Init
from passthrough.session.channel import DeviceChannel
from passthrough.session.handlers.table import HANDLERS
from passthrough.session.ring_pools import RingPools
from passthrough.session.rings import RingChannel
from passthrough.session.session import Session
from passthrough.session.thread_pool import ThreadPool
from passthrough.session.thread_slots import SAMPLE_INTERVAL_S
from passthrough.session.uring import Ring

log = logging.getLogger(__name__)

# Requests in flight may take this long when the session ends; after that they count as hung. At its
# own end and in Remove, the plugin waits longer than this for the worker.
_DRAIN_LIMIT_S: Final = 1.0
_DRAIN_INTERVAL_S: Final = 0.005
_MS_PER_S: Final = 1000
_PIPE_READ_SIZE: Final = 4096

prepare: Final = filesystem_of


def run(
    fs: PassthroughFs, fuse_fd: int, serving: Callable[[str], object], keeper_fd: int | None
) -> None:
    """Serve *fs* on *fuse_fd*, the descriptor of a mount, until unmount, SIGTERM or keeper's end.

    Answers the requests in flight before it returns. Takes *fuse_fd*. Calls *serving* when requests
    are answered. The keeper has ended if *keeper_fd*, a pipe, has no writer left. To be called by
    the main thread, which blocks in it.

    Raises:
        OSError: *fuse_fd* is no descriptor of a FUSE mount, the kernel speaks another protocol, or
            the connection broke.
    """
    channel = DeviceChannel(fuse_fd)
    session = Session(fs, channel, HANDLERS)
    fs.tell_lost_privileges(session.forget_attributes)
    try:
        _negotiate(session, channel, fuse_fd)
        without_passthrough = _without_passthrough(session)
        with shutdown.wakeup_pipe() as (wakeup_fd, wake):
            rings = _ring_pools(session, channel, fuse_fd, wake)
            threads = ThreadPool(session, channel, wake, beside_rings=rings.in_use)
            try:
                threads.start()
                rings.start()
                serving(without_passthrough)
                _wait_for_end(threads, rings, wakeup_fd, keeper_fd)
            finally:
                threads.stop()
                rings.stop()
        _drain(threads, rings)
        for error in (threads.error, rings.error):
            if error is not None:
                raise error
    finally:
        channel.leave()
        os.close(fuse_fd)


def _negotiate(session: Session, channel: DeviceChannel, fuse_fd: int) -> None:
    """Answer INIT, which the kernel sends before any other request."""
    request = channel.open_request()
    while session.agreed is None:
        if not channel.receive(request):
            raise OSError(errno.EBADF, f"descriptor {fuse_fd} belongs to no FUSE mount")
        session.answer(request, channel)
        if session.broken is not None:
            raise session.broken


def _without_passthrough(session: Session) -> str:
    """Return why the kernel passes no reads and writes through although the options allow it.

    The text is empty if the kernel passes them through, or if the options do not allow it.
    """
    if not session.passes_through:
        return session.why_not(Init.PASSTHROUGH)
    why = session.backings.why_not()
    if why and session.fs.config.passthrough is Passthrough.ON:
        raise OSError(errno.EPERM, f"option 'passthrough': 'on' cannot be had: {why}")
    session.passes_through = not why
    return why


def _ring_pools(
    session: Session, channel: DeviceChannel, fuse_fd: int, wake: Callable[[], object]
) -> RingPools:
    """Return the pools of all processors for `transport=io_uring`, else of none."""
    processors: Sequence[int] = ()
    if session.fs.config.transport is Transport.IO_URING:
        if not session.uses(Init.OVER_IO_URING):
            why = session.why_not(Init.OVER_IO_URING)
            raise OSError(errno.EPROTO, f"option 'transport': 'io_uring' cannot be had: {why}")
        processors = kernel_features.possible_processors()
    return RingPools(
        session, lambda number: RingChannel(Ring(), fuse_fd, number, channel), processors, wake
    )


def _wait_for_end(
    threads: ThreadPool, rings: RingPools, wakeup_fd: int, keeper_fd: int | None
) -> None:
    """Sample the pools until the connection, the keeper or a signal ends the session."""
    poll = shutdown.poll_of(wakeup_fd, keeper_fd)
    while not threads.ended and rings.error is None:
        idle = threads.idle and rings.idle
        for fd, _ in poll.poll(None if idle else SAMPLE_INTERVAL_S * _MS_PER_S):
            if fd == keeper_fd:
                log.info(shutdown.KEEPER_ENDED)
                return
            if os.read(fd, _PIPE_READ_SIZE).strip(shutdown.WAKE):
                return  # the number of a signal
        threads.sample()
        rings.sample()


def _drain(threads: ThreadPool, rings: RingPools) -> None:
    """Wait until the requests in flight are answered, for 1 s at most."""
    deadline = time.monotonic() + _DRAIN_LIMIT_S
    while threads.in_flight() + rings.in_flight() and time.monotonic() < deadline:
        time.sleep(_DRAIN_INTERVAL_S)
    if left := threads.in_flight() + rings.in_flight():
        log.warning("%d requests hang in the host's file system and are left unanswered", left)
