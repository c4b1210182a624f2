"""Which flags of a caller's open(2) reach the host.

A file is opened twice, by the caller in its own kernel and here: what has had its effect there, or
would have another one here, is left out. With the kernel's write-back cache the kernel itself
appends, and reads what surrounds a partial page, through whichever descriptor is open.
"""

import os
from typing import Final

from passthrough.config import Atime, Config

# The file exists, is reached through a link in /proc that has to be followed, becomes nobody's
# terminal.
_NOT_FOR_HOST: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NOCTTY


def changes(flags: int) -> bool:
    """Whether opening with *flags* changes the file, or lets it be changed."""
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)


class OpenFlags:
    """The flags for the host's files, from those of callers and the options of one volume."""

    __slots__ = ("_added", "_left_out", "_writeback", "status")

    def __init__(self, config: Config) -> None:
        """Take a Config in which conflicts are decided."""
        self._writeback = config.writeback
        self._left_out = _NOT_FOR_HOST
        if config.writeback:
            self._left_out |= os.O_APPEND
        if not config.allow_direct_io:
            self._left_out |= os.O_DIRECT
        self.status = (os.O_APPEND | os.O_DIRECT) & ~self._left_out
        """What fcntl(2) changes of an open file, and the host is to know."""
        self._added = os.O_CLOEXEC
        if config.atime is Atime.NOATIME:
            self._added |= os.O_NOATIME

    def existing(self, flags: int) -> int:
        """For opening, through /proc/self/fd, what is there."""
        if self._writeback and flags & os.O_ACCMODE == os.O_WRONLY:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR
        return flags & ~self._left_out | self._added

    def created(self, flags: int) -> int:
        """For making a file by name, and no other than a new one."""
        return self.existing(flags) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
