"""The wait between the death of a worker and the next one.

A death by SIGKILL or SIGTERM comes from outside: the next worker follows at once, but after 20 ms
if the dead one lived for less than 100 ms. Other deaths are the worker's own. The second within a
second waits for 50 ms, each further one twice as long as the one before, up to 1 s. After ten
within a minute there is no next worker.
"""

import math
from collections.abc import Iterable
from typing import Final

from passthrough.worker.control import Death

MOST_DEATHS: Final = 10
WITHIN_S: Final = 60.0

_SHORT_LIFE_S: Final = 0.1
_AFTER_SHORT_LIFE_S: Final = 0.02
_SOON_S: Final = 1.0
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 1.0


def wait_after(death: Death, recent: Iterable[Death], lived_s: float, last_wait_s: float) -> float:
    """Return the wait after *death*, in seconds; infinity: there is no next worker.

    *recent* are the last deaths, with *death* as the last of them. The worker lived for *lived_s*,
    and *last_wait_s* was the wait before it.
    """
    if not death.own_fault:
        return _AFTER_SHORT_LIFE_S if lived_s < _SHORT_LIFE_S else 0.0
    ages_s = [death.boot_s - each.boot_s for each in recent if each.own_fault]
    if len([age_s for age_s in ages_s if age_s < WITHIN_S]) >= MOST_DEATHS:
        return math.inf
    if len(ages_s) > 1 and ages_s[-2] < _SOON_S + last_wait_s:
        return min(max(2 * last_wait_s, _FIRST_WAIT_S), _LONGEST_WAIT_S)
    return 0.0
