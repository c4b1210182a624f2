"""Timeouts: those that a volume gives, and those of its cache policy.

`CachePolicy` (choices.py) lists the other effects of the option `cache`.
"""

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


def _either(given_s: float | None, default_s: float) -> float:
    return default_s if given_s is None else given_s
