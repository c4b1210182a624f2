"""Cache policy to numbers: who may cache what, and for how long, is decided here alone."""

import stat
from typing import Final

from passthrough.config import CachePolicy, Config

# A day: long enough that a policy which trusts the cache never asks again in practice, short
# enough that a mistake ends by itself.
_LONG_S: Final = 86_400.0

_TIMEOUT_S: Final = {
    CachePolicy.NEVER: 0.0,
    CachePolicy.METADATA: _LONG_S,
    CachePolicy.AUTO: 1.0,
    CachePolicy.ALWAYS: _LONG_S,
}


class Cache:
    """The timeouts of one volume, in seconds, and what its opens allow."""

    __slots__ = ("_directory", "_other", "keep_pages", "refresh_on_open")

    def __init__(self, config: Config) -> None:
        policy_s = _TIMEOUT_S[config.cache]
        entry_s = policy_s if config.entry_timeout is None else config.entry_timeout
        attr_s = policy_s if config.attr_timeout is None else config.attr_timeout
        self._other = (entry_s, attr_s)
        self._directory = (
            entry_s if config.dir_entry_timeout is None else config.dir_entry_timeout,
            attr_s if config.dir_attr_timeout is None else config.dir_attr_timeout,
        )
        self.keep_pages = config.cache is CachePolicy.ALWAYS
        """Whether the pages of a file survive its next open (FOPEN_KEEP_CACHE)."""
        self.refresh_on_open = config.cache is CachePolicy.METADATA
        """Whether an open makes the kernel forget the file's attributes: its pages are read anew,
        and with a size from the day before it would stop reading too early."""

    def timeouts(self, mode: int) -> tuple[float, float]:
        """How long the entry and the attributes of a file with st_mode *mode* stay known."""
        return self._directory if stat.S_ISDIR(mode) else self._other
