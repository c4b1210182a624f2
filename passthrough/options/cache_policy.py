"""Cache policy to numbers: who may cache what, and for how long, is decided here alone.

`never` does without FOPEN_DIRECT_IO, which would make shared memory maps fail with ENODEV: git,
linkers and SQLite's WAL need them. Instead the kernel drops a file's pages at each open, and keeps
no name or attribute.
"""

import stat
from typing import Final, NamedTuple

from passthrough.options.config import CachePolicy, Config

# A day: long enough that a policy which trusts the cache never asks again in practice, short
# enough that a mistake ends by itself.
_LONG_S: Final = 86_400.0

_TYPE: Final = 0o170000  # S_IFMT, and the kind of each file that is asked about without a call

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


def timeouts(config: Config) -> Timeouts:
    """What was given, and the policy's own for what was not."""
    policy_s = _TIMEOUT_S[config.cache]
    entry_s = policy_s if config.entry_timeout is None else config.entry_timeout
    attr_s = policy_s if config.attr_timeout is None else config.attr_timeout
    return Timeouts(
        entry_timeout=entry_s,
        attr_timeout=attr_s,
        dir_entry_timeout=entry_s if config.dir_entry_timeout is None else config.dir_entry_timeout,
        dir_attr_timeout=attr_s if config.dir_attr_timeout is None else config.dir_attr_timeout,
        negative_timeout=policy_s if config.negative_timeout is None else config.negative_timeout,
    )


class Cache:
    """The timeouts of one volume, in seconds, and what its opens allow."""

    __slots__ = ("_directory", "_other", "absent", "keep_pages", "refresh_on_open")

    def __init__(self, config: Config) -> None:
        apply = timeouts(config)
        self._other = (apply.entry_timeout, apply.attr_timeout)
        self._directory = (apply.dir_entry_timeout, apply.dir_attr_timeout)
        self.keep_pages = config.cache is CachePolicy.ALWAYS
        """Whether the pages of a file survive its next open (FOPEN_KEEP_CACHE)."""
        self.refresh_on_open = config.cache is CachePolicy.METADATA
        """Whether an open makes the kernel forget the file's attributes: its pages are read anew,
        and with a size from the day before it would stop reading too early."""
        self.absent = apply.negative_timeout
        """How long it stays known that there is no such name; 0 for not at all."""

    def timeouts(self, mode: int) -> tuple[float, float]:
        """How long the entry and the attributes of a file with st_mode *mode* stay known."""
        return self._directory if mode & _TYPE == stat.S_IFDIR else self._other
