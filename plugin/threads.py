"""System calls that may never return, such as those on a dead network file system.

Each runs in a thread that the caller abandons at its deadline. A thread that is stuck in the kernel
cannot be ended, and keeps its slot in its limiter. So a call that may hang for ever has a limiter
of its own, apart from that of the registry's writes.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def call(
    function: Callable[[], T], limiter: trio.CapacityLimiter, discard: Callable[[T], object]
) -> T:
    """Return the result of *function*, run in a thread that is abandoned on cancellation.

    If the caller is cancelled, *discard* gets the result. For example, it closes a descriptor or
    undoes a mount. The thread calls *discard*, or the caller if the function had just returned.
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
        # The function returned, but trio delivered the cancellation first.
        for result in results:
            discard(result)
        raise
