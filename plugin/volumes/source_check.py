"""A look at what each volume serves, once after the start, so that Get can tell what is missing.

It holds nobody up: requests do not wait for it, and what does not answer is waited for here alone.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import trio

from plugin import threads
from plugin.errors import PluginError
from plugin.volume import VolumeName
from plugin.volumes.volume_locks import SOURCE_DEADLINE_S, Turns

# How many looks are under way at once, and so how many threads hang if all servers are dead; the
# others are not looked at then.
LOOKS = 4

# At the end of the plugin, for looks under way: only those that hang are left behind.
LEAVE_S = 0.5


class Subject(NamedTuple):
    """What to look at."""

    volume: VolumeName
    look: Callable[[], None]
    """Raises PluginError or OSError when something is wrong; may block for ever."""
    note: Callable[[str], None]
    """Called with what is wrong, and with nothing when nothing is."""


async def survey(subjects: Iterable[Subject], turns: Turns) -> None:
    """Look at each of *subjects*; over when all have answered."""
    rest = iter(subjects)
    async with trio.open_nursery() as nursery:
        for _ in range(LOOKS):
            nursery.start_soon(_look_at_all, rest, turns)


async def _look_at_all(subjects: Iterator[Subject], turns: Turns) -> None:
    for subject in subjects:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell_silence, subject)
            with turns.beside(subject.volume) as turn:
                subject.note(await _look(subject, turn.limiter))
            nursery.cancel_scope.cancel()


async def _look(subject: Subject, limiter: trio.CapacityLimiter) -> str:
    try:
        await threads.call(subject.look, limiter, lambda _: None)
    except (PluginError, OSError) as error:
        return str(error)
    except trio.Cancelled:
        with trio.move_on_after(LEAVE_S, shield=True):
            await limiter.acquire()  # the thread has it until it is done
            limiter.release()
        raise
    return ""


async def _tell_silence(subject: Subject) -> None:
    await trio.sleep(SOURCE_DEADLINE_S)
    subject.note(f"its source has not answered within {SOURCE_DEADLINE_S:g} s")
