"""Reaps orphans, if the plugin is the first process of a pid namespace, as a managed plugin is.

The parent of a worker is the guard that has made it. If the guard dies, the worker becomes a child
of process 1. After its end, the worker is a zombie until process 1 waits for it, wait(2). The same
holds for a second guard after the death of the first, and for a first guard after the death of the
fork server. On a host, init reaps orphans.
"""

import os
import signal
from collections.abc import Callable

import trio

INIT_PID = 1
# trio waits for the fork server itself, as soon as the kernel reports its end.
OWN_CHILD_PAUSE_S = 0.01


async def reap_orphans(is_own: Callable[[int], bool]) -> None:
    """Reap all children that end, until cancelled; trio reaps those for which *is_own* is true.

    Returns at once if this process is not the first one of its pid namespace.
    """
    if os.getpid() != INIT_PID:
        return
    with trio.open_signal_receiver(signal.SIGCHLD) as signals:
        async for _ in signals:
            while not _reap(is_own):  # noqa: ASYNC110 - for a wait of trio itself
                await trio.sleep(OWN_CHILD_PAUSE_S)


def _reap(is_own: Callable[[int], bool]) -> bool:
    """Reap the children that have ended; return False if one of trio's is in the way."""
    while (pid := _ended_child()) is not None:
        if is_own(pid):
            return False
        os.waitpid(pid, os.WNOHANG)
    return True


def _ended_child() -> int | None:
    """Return the process id of a child that has ended and is not reaped."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if ended is None else ended.si_pid
