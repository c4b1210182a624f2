"""Timeouts: those that a volume gives, and those of its cache policy.

`CachePolicy` (choices.py) lists the other effects of the option `cache`.

The timeouts can change while the volume is mounted (passthrough/worker/live.py).
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from passthrough.options.choices import CachePolicy
from passthrough.options.table import Values

# A day: a policy that trusts the cache practically never asks again, yet a stale entry expires.
_LONG_S: Final = 86_400.0

_TIMEOUT_S: Final = {
    CachePolicy.NEVER: 0.0,
    CachePolicy.METADATA: _LONG_S,
    CachePolicy.AUTO: 1.0,
    CachePolicy.ALWAYS: _LONG_S,
}

# A word, as core/timeouts.pxd reads it: a bit that makes it not 0, seconds, nanoseconds.
_GIVEN: Final = 1 << 63
_SECONDS_SHIFT: Final = 30
_NS_PER_S: Final = 1_000_000_000


class Timeouts(NamedTuple):
    """Each timeout in seconds, by the name of its option."""

    entry_timeout: float
    attr_timeout: float
    dir_entry_timeout: float
    dir_attr_timeout: float
    negative_timeout: float


def timeouts(options: Values) -> Timeouts:
    """Return the timeouts that *options* give, with policy defaults for the others."""
    policy_s = _TIMEOUT_S[options.cache]
    entry_s = _either(options.entry_timeout, policy_s)
    attr_s = _either(options.attr_timeout, policy_s)
    return Timeouts(
        entry_timeout=entry_s,
        attr_timeout=attr_s,
        dir_entry_timeout=_either(options.dir_entry_timeout, entry_s),
        dir_attr_timeout=_either(options.dir_attr_timeout, attr_s),
        negative_timeout=_either(options.negative_timeout, policy_s),
    )


def words(each: Timeouts) -> Iterator[int]:
    """Yield for each timeout the word that the core reads, not 0."""
    for seconds in each:
        whole, ns = divmod(round(seconds * _NS_PER_S), _NS_PER_S)
        yield _GIVEN | whole << _SECONDS_SHIFT | ns


def _either(given_s: float | None, default_s: float) -> float:
    return default_s if given_s is None else given_s
