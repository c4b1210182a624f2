"""A check of each volume's source, once after the start, so that Get reports a source that is gone.

Requests do not wait for the checks. If a source does not answer, only its own check waits for it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import trio

from plugin import threads
from plugin.errors import PluginError
from plugin.volume import VolumeName
from plugin.volumes.volume_locks import SOURCE_DEADLINE_S, VolumeLocks

# Checks in flight at once. If all servers are dead, as many threads hang, and the sources of the
# other volumes are not checked.
CONCURRENT_CHECKS = 4

# At the end of the plugin, for the checks in flight. A thread that has not returned by then hangs,
# and is left behind.
END_GRACE_S = 0.5


class SourceCheck(NamedTuple):
    """The check of one volume's source."""

    volume: VolumeName
    check: Callable[[], None]
    """Raises PluginError or OSError if something is wrong; may block for ever."""
    report: Callable[[str], None]
    """Called with the error, empty if there is none."""


async def check_sources(checks: Iterable[SourceCheck], locks: VolumeLocks) -> None:
    """Run *checks*; return when all sources have answered."""
    pending = iter(checks)
    async with trio.open_nursery() as nursery:
        for _ in range(CONCURRENT_CHECKS):
            nursery.start_soon(_run_all, pending, locks)


async def _run_all(pending: Iterator[SourceCheck], locks: VolumeLocks) -> None:
    for check in pending:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_report_silence, check)
            with locks.source_limiter(check.volume) as limiter:
                check.report(await _run(check, limiter))
            nursery.cancel_scope.cancel()


async def _run(check: SourceCheck, limiter: trio.CapacityLimiter) -> str:
    try:
        await threads.call(check.check, limiter, lambda _: None)
    except (PluginError, OSError) as error:
        return str(error)
    except trio.Cancelled:
        with trio.move_on_after(END_GRACE_S, shield=True):
            await limiter.acquire()  # which the thread holds until it returns
            limiter.release()
        raise
    return ""


async def _report_silence(check: SourceCheck) -> None:
    await trio.sleep(SOURCE_DEADLINE_S)
    check.report(f"its source has not answered within {SOURCE_DEADLINE_S:g} s")
