"""System calls that may never return, such as those on a dead network file system.

Each runs in a thread that is left behind when the caller's deadline passes. A thread that is stuck
in the kernel cannot be ended and keeps its place in its limiter. So what may be stuck for ever has
a limiter of its own, and never the one that the registry's writes go through.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def call(
    function: Callable[[], T], limiter: trio.CapacityLimiter, discard: Callable[[T], object]
) -> T:
    """Run *function* in a thread, and leave it there when cancelled.

    A result that comes when nobody waits any more goes to *discard*, mostly in that thread: a
    descriptor has to be closed, a mount to be undone.
    """
    lock = threading.Lock()
    results: list[T] = []
    abandoned = False

    def run() -> T:
        result = function()
        with lock:
            if not abandoned:
                results.append(result)
                return result
        discard(result)
        return result

    try:
        return await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=limiter)
    except trio.Cancelled:
        with lock:
            abandoned = True
        # The thread was done, and trio had already turned to the cancellation.
        for result in results:
            discard(result)
        raise
