"""Which flags of a caller's open(2) reach the host.

A file is opened twice, by the caller in its own kernel and here: what has had its effect there, or
would have another one here, is left out.
"""

import os
from typing import Final

from passthrough.config import Atime, Config

# The file exists, is reached through a link in /proc that has to be followed, becomes nobody's
# terminal, and is read into buffers that are not aligned.
_NOT_FOR_HOST: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NOCTTY | os.O_DIRECT


class OpenFlags:
    """The flags for the host's files, from those of callers and the options of one volume."""

    __slots__ = ("_added",)

    def __init__(self, config: Config) -> None:
        self._added = os.O_CLOEXEC
        if config.atime is Atime.NOATIME:
            self._added |= os.O_NOATIME

    def existing(self, flags: int) -> int:
        """For opening, through /proc/self/fd, what is there."""
        return flags & ~_NOT_FOR_HOST | self._added

    def created(self, flags: int) -> int:
        """For making a file by name, and no other than a new one."""
        return self.existing(flags) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
