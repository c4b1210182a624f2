"""Whether the kernel still knows what it was told of a file, so that a listing need not say it.

A listing may answer a name with its entry and attributes (READDIRPLUS), which costs as much as a
lookup, or with the name alone. The kernel asks for the former whenever somebody begins to list a
directory, also if it was told all of it a moment ago.

An answer with the name alone is given for at most half of the shortest timeout after the kernel was
told, so that the lister still has time to look. d_ino tells which inode a name leads to; if d_ino
is wrong, the kernel asks for that name.
"""

import time
from typing import Final

from passthrough.options.timeouts import Timeouts

# A timeout is as long as so many moments. What was told in this one or the one before is fresh: at
# least half of the time is left, for whoever lists to look at what was listed.
_MOMENTS: Final = 4
NEVER: Final = -2


class Freshness:
    """The moment that it is, in parts of the shortest timeout; safe for threads."""

    __slots__ = ("_moment", "_per_second")

    def __init__(self, timeouts: Timeouts) -> None:
        """Nothing is ever fresh if one of *timeouts* is 0."""
        entries = (timeouts.entry_timeout, timeouts.dir_entry_timeout)
        shortest_s = min(*entries, timeouts.attr_timeout, timeouts.dir_attr_timeout)
        self._per_second = _MOMENTS / shortest_s if shortest_s else 0.0
        self._moment = 0

    def moment(self) -> int:
        """Now; the same object for as long as it is the same moment: each inode keeps one."""
        if self._per_second:
            moment = int(time.monotonic() * self._per_second)
            if moment != self._moment:
                self._moment = moment
        return self._moment

    def lasts(self, told: int) -> bool:
        """Whether the kernel will still know for a while what it was told at the moment *told*."""
        return bool(self._per_second) and self.moment() - told <= 1
