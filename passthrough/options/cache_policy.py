"""The timeouts and open flags that follow from a volume's cache policy.

`CachePolicy` (choices.py) lists the other effects of the option `cache`.

`never` does without FOPEN_DIRECT_IO, which would make shared memory maps fail with ENODEV: git,
linkers and SQLite's WAL need them. Instead the kernel drops a file's pages at each open, and keeps
no name or attribute.
"""

import stat
from typing import Final

from passthrough.options.choices import CachePolicy
from passthrough.options.effective import Effective

# The mask of the file type in st_mode, inode(7): one operation, where stat.S_ISDIR is a call.
_S_IFMT: Final = 0o170000


class Cache:
    """The timeouts of one volume, in seconds, and the flags of its opens."""

    __slots__ = ("_directory", "_other", "absent", "keep_pages", "refresh_on_open")

    def __init__(self, options: Effective) -> None:
        self._other = (options.entry_timeout, options.attr_timeout)
        self._directory = (options.dir_entry_timeout, options.dir_attr_timeout)
        self.keep_pages = options.cache is CachePolicy.ALWAYS
        """True if the cached pages of a file survive its next open (FOPEN_KEEP_CACHE)."""
        self.refresh_on_open = options.cache is CachePolicy.METADATA
        """True if an open makes the kernel forget the file's attributes.

        The open drops the file's pages. With a stale size, reads of the new pages end too early.
        """
        self.absent = options.negative_timeout
        """The timeout of a negative entry; 0 if the kernel keeps none."""

    def timeouts(self, mode: int) -> tuple[float, float]:
        """Return the entry timeout and the attribute timeout of a file with st_mode *mode*."""
        return self._directory if mode & _S_IFMT == stat.S_IFDIR else self._other
