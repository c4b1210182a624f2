"""The `kernel` session: the kernel's own FUSE protocol on /dev/fuse, in a few threads.

channel.py          bytes from the kernel and back
request.py, wire.py requests taken apart, replies put together
negotiation.py      which features are in use, and why
session.py          what handlers share; the one error boundary
handlers/           one function per opcode, and the table of them
notifications.py    what the kernel is told unasked
crew.py             the threads
uring.py, rings.py  requests over io_uring in place of /dev/fuse
queues.py           the threads for that
"""

import contextlib
import errno
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from passthrough import running
from passthrough.config import Transport
from passthrough.filesystem import PassthroughFs
from passthrough.session.abi import Init
from passthrough.session.channel import DeviceChannel
from passthrough.session.crew import LOOK_S, Crew
from passthrough.session.handlers.table import HANDLERS
from passthrough.session.queues import Queues
from passthrough.session.rings import RingChannel
from passthrough.session.session import Session
from passthrough.session.uring import Ring

log = logging.getLogger(__name__)

# How long requests in hand may take when the session is to end. What takes longer hangs.
_PATIENCE_S: Final = 5.0
_LOOK_AGAIN_S: Final = 0.005
_MS_PER_S: Final = 1000
_WAKE: Final = b"\0"
_MANY: Final = 4096
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def run(
    fs: PassthroughFs, fuse_fd: int, serving: Callable[[], object], keeper_fd: int | None
) -> None:
    """Serve *fs* on *fuse_fd*, whose mount is made, until unmounted, SIGTERM or the keeper's end.

    Requests in hand are answered first. Takes *fuse_fd*. Calls *serving* when the kernel has been
    greeted. The keeper has ended when *keeper_fd*, a pipe, has no writer left. To be called by the
    main thread, which does nothing but wait.

    Raises:
        OSError: *fuse_fd* is no descriptor of a FUSE mount, the kernel speaks another protocol, or
            the connection broke.
    """
    channel = DeviceChannel(fuse_fd)
    session = Session(fs, channel, HANDLERS)
    try:
        _greet(session, channel, fuse_fd)
        with _woken() as (woken_fd, wake):
            crew = Crew(session, channel, wake)
            queues = Queues(
                session,
                lambda number: RingChannel(Ring(), fuse_fd, number, channel),
                _processors(session),
                wake,
            )
            queues.start()
            serving()
            crew.start()
            _wait_for_end(crew, queues, woken_fd, keeper_fd)
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


def _processors(session: Session) -> Sequence[int]:
    """The processors whose requests come over io_uring: all or none."""
    if session.fs.config.transport is not Transport.IO_URING:
        return ()
    if not session.uses(Init.OVER_IO_URING):
        raise OSError(errno.EPROTO, "FUSE over io_uring was switched off before the mount was made")
    return running.possible_processors()


@contextlib.contextmanager
def _woken() -> Iterator[tuple[int, Callable[[], object]]]:
    """A descriptor to read from: _WAKE for each call of the function, the numbers of signals."""
    woken_fd, waking_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # Python's own handlers do nothing: what counts is the byte that comes before they run.
    previous = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    signal.set_wakeup_fd(waking_fd, warn_on_full_buffer=False)
    try:
        yield woken_fd, lambda: os.write(waking_fd, _WAKE)
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(woken_fd)
        os.close(waking_fd)


def _wait_for_end(crew: Crew, queues: Queues, woken_fd: int, keeper_fd: int | None) -> None:
    """Look after the crew until there is nothing to serve, or somebody wants it to end."""
    poll = select.poll()
    poll.register(woken_fd, select.POLLIN)
    if keeper_fd is not None:
        poll.register(keeper_fd, select.POLLIN)
    while not crew.ended and queues.error is None:
        ready = [
            fd
            for fd, _ in poll.poll(None if crew.resting and queues.resting else LOOK_S * _MS_PER_S)
        ]
        if keeper_fd in ready:
            log.info("the keeper of this mount has ended; so does its worker")
            return
        if woken_fd in ready and os.read(woken_fd, _MANY).strip(_WAKE):
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
