"""Running the `libfuse` session: trio's loop, with what ends it beside it."""

import logging
import signal
from collections.abc import Callable
from functools import partial

import trio

from passthrough.filesystem import PassthroughFs
from passthrough.session import libfuse

log = logging.getLogger(__name__)


def run(
    fs: PassthroughFs, fuse_fd: int, serving: Callable[[str], object], keeper_fd: int | None
) -> None:
    """Serve *fs* on *fuse_fd*, whose mount is made, until unmounted, SIGTERM or the keeper's end.

    As kernel.run does.

    Raises:
        OSError: *fuse_fd* is no descriptor of a FUSE mount, or the session with the kernel failed.
    """
    try:
        trio.run(_serve, fs, fuse_fd, partial(serving, ""), keeper_fd)
    except ExceptionGroup as group:
        raise _innermost(group) from group


async def _serve(
    fs: PassthroughFs, fuse_fd: int, serving: Callable[[], object], keeper_fd: int | None
) -> None:
    async with trio.open_nursery() as nursery:
        stop = nursery.cancel_scope.cancel
        nursery.start_soon(_stop_on_signal, stop)
        if keeper_fd is not None:
            nursery.start_soon(_stop_without_keeper, keeper_fd, stop)
        await libfuse.serve(fs, fuse_fd, serving)
        stop()


def _innermost(error: Exception) -> Exception:
    """What went wrong, out of the groups that each nursery on its way has put around it."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def _stop_on_signal(stop: Callable[[], None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop()


async def _stop_without_keeper(keeper_fd: int, stop: Callable[[], None]) -> None:
    await trio.lowlevel.wait_readable(keeper_fd)
    log.info("the keeper of this mount has ended; so does its worker")
    stop()
