"""The `kernel` session: the kernel's own FUSE protocol on /dev/fuse, in a few threads.

channel.py          bytes from the kernel and back
polling.py          asking before sleeping
request.py, wire.py requests taken apart, replies put together
negotiation.py      which features are in use, and why
session.py          what handlers share; the one error boundary
handlers/           one function per opcode, and the table of them
notifications.py    what the kernel is told unasked
backing.py          which files of the host the kernel reads and writes itself
crew.py             the threads
uring.py, rings.py  requests over io_uring in place of /dev/fuse
queues.py           the threads for that
members.py          what is seen of a thread
ending.py           signals, and the end of the keeper
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from passthrough.core.filesystem import PassthroughFs
from passthrough.linux import kernel_features
from passthrough.options.config import Passthrough, Transport
from passthrough.session import shutdown
from passthrough.session.abi import Init
from passthrough.session.channel import DeviceChannel
from passthrough.session.handlers.table import HANDLERS
from passthrough.session.ring_pools import Queues
from passthrough.session.rings import RingChannel
from passthrough.session.session import Session
from passthrough.session.thread_pool import Crew
from passthrough.session.thread_slots import LOOK_S
from passthrough.session.uring import Ring

log = logging.getLogger(__name__)

# How long requests in hand may take when the session is to end. What takes longer hangs. Shorter
# than who waits for the end of this process has patience: the plugin when it ends, and Remove.
_PATIENCE_S: Final = 1.0
_LOOK_AGAIN_S: Final = 0.005
_MS_PER_S: Final = 1000
_MANY: Final = 4096


def run(
    fs: PassthroughFs, fuse_fd: int, serving: Callable[[str], object], keeper_fd: int | None
) -> None:
    """Serve *fs* on *fuse_fd*, whose mount is made, until unmounted, SIGTERM or the keeper's end.

    Requests in hand are answered first. Takes *fuse_fd*. Calls *serving* when requests are
    answered. The keeper has ended when *keeper_fd*, a pipe, has no writer left. To be called by the
    main thread, which does nothing but wait.

    Raises:
        OSError: *fuse_fd* is no descriptor of a FUSE mount, the kernel speaks another protocol, or
            the connection broke.
    """
    channel = DeviceChannel(fuse_fd)
    session = Session(fs, channel, HANDLERS)
    fs.tell_lost_privileges(session.forget_attributes)
    try:
        _greet(session, channel, fuse_fd)
        without_passthrough = _without_passthrough(session)
        with shutdown.woken() as (woken_fd, wake):
            queues = _queues(session, channel, fuse_fd, wake)
            crew = Crew(session, channel, wake, beside_rings=queues.in_use)
            try:
                crew.start()
                queues.start()
                serving(without_passthrough)
                _wait_for_end(crew, queues, woken_fd, keeper_fd)
            finally:
                crew.stop()
                queues.stop()
        _wait_for_requests(crew, queues)
        for error in (crew.error, queues.error):
            if error is not None:
                raise error
    finally:
        channel.leave()
        os.close(fuse_fd)


def _greet(session: Session, channel: DeviceChannel, fuse_fd: int) -> None:
    """Answer INIT, which the kernel sends before anything else."""
    request = channel.open_request()
    while session.agreed is None:
        if not channel.receive(request):
            raise OSError(errno.EBADF, f"no FUSE mount speaks through descriptor {fuse_fd}")
        session.answer(request, channel)
        if session.broken is not None:
            raise session.broken


def _without_passthrough(session: Session) -> str:
    """Why nothing passes through to the host's files although the options allow it; or nothing."""
    if not session.passes_through:
        return session.why_not(Init.PASSTHROUGH)
    why = session.backings.why_not()
    if why and session.fs.config.passthrough is Passthrough.ON:
        raise OSError(errno.EPERM, f"option 'passthrough': 'on' cannot be had: {why}")
    session.passes_through = not why
    return why


def _queues(
    session: Session, channel: DeviceChannel, fuse_fd: int, wake: Callable[[], object]
) -> Queues:
    """The threads for io_uring: of every processor, or of none."""
    processors: Sequence[int] = ()
    if session.fs.config.transport is Transport.IO_URING:
        if not session.uses(Init.OVER_IO_URING):
            why = session.why_not(Init.OVER_IO_URING)
            raise OSError(errno.EPROTO, f"option 'transport': 'io_uring' cannot be had: {why}")
        processors = kernel_features.possible_processors()
    return Queues(
        session, lambda number: RingChannel(Ring(), fuse_fd, number, channel), processors, wake
    )


def _wait_for_end(crew: Crew, queues: Queues, woken_fd: int, keeper_fd: int | None) -> None:
    """Look after the crew until there is nothing to serve, or somebody wants it to end."""
    poll = shutdown.poll_of(woken_fd, keeper_fd)
    while not crew.ended and queues.error is None:
        resting = crew.resting and queues.resting
        for fd, _ in poll.poll(None if resting else LOOK_S * _MS_PER_S):
            if fd == keeper_fd:
                log.info(shutdown.KEEPER_ENDED)
                return
            if os.read(fd, _MANY).strip(shutdown.WAKE):
                return  # a signal: its number is what was written
        crew.look()
        queues.look()


def _wait_for_requests(crew: Crew, queues: Queues) -> None:
    """Give what is in hand time to be answered; it takes no longer, unless the host hangs."""
    deadline = time.monotonic() + _PATIENCE_S
    while crew.at_work() + queues.at_work() and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN_S)
    if left := crew.at_work() + queues.at_work():
        log.warning("%d requests hang in the host's file system and are left unanswered", left)
