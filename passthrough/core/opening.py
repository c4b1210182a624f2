"""Which flags of a caller's open(2) reach the host.

A file is opened twice, by the caller in its own kernel and here: what has had its effect there, or
would have another one here, is left out. O_APPEND is for each write to say: the kernel writes the
pages of a mapped file back through any descriptor, to where they belong. With the kernel's
write-back cache the kernel itself appends, and reads what surrounds a partial page, through
whichever descriptor is open.

O_DIRECT reaches the host with the caller's offset and size. The worker's buffers begin at a page;
if the host's file system wants more, or no O_DIRECT at all, the caller gets its errno. One write is
excepted: a write that ends exactly where the file ends may be the rest of a mapped file that the
kernel writes back. If it is not aligned, it goes through the host's cache.
"""

import os
from typing import Final

from passthrough.options.effective import Effective, adds_noatime

# The file exists, is reached through a link in /proc that has to be followed, becomes nobody's
# terminal, is written to where each write says.
_NOT_FOR_HOST: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NOCTTY | os.O_APPEND
# What fcntl(2) changes of an open file, and pwritev2(2) asks for in one write.
_OF_REQUESTS: Final = os.O_APPEND | os.O_DIRECT | os.O_SYNC


def changes(flags: int) -> bool:
    """Whether opening with *flags* changes the file, or lets it be changed."""
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)


class OpenFlags:
    """The flags for the host's files, from those of callers and the options of one volume."""

    __slots__ = ("_added", "_left_out", "_of_requests", "_writeback")

    def __init__(self, config: Effective) -> None:
        self._writeback = config.writeback
        self._left_out = _NOT_FOR_HOST
        self._of_requests = _OF_REQUESTS
        if config.writeback:
            self._of_requests &= ~os.O_APPEND
        if not config.allow_direct_io:
            self._left_out |= os.O_DIRECT
            self._of_requests &= ~os.O_DIRECT
        self._added = os.O_CLOEXEC
        if adds_noatime(config):
            self._added |= os.O_NOATIME

    def existing(self, flags: int) -> int:
        """For opening, through /proc/self/fd, what is there."""
        if self._writeback and flags & os.O_ACCMODE == os.O_WRONLY:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR
        return flags & ~self._left_out | self._added

    def asked(self, flags: int) -> int:
        """For opening what is there as the caller asks for it, without what the options add."""
        return flags & ~self._left_out | os.O_CLOEXEC

    def created(self, flags: int) -> int:
        """For making a file by name, and no other than a new one."""
        return self.existing(flags) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW

    def unnamed(self, flags: int) -> int:
        """For making a file without a name; with O_EXCL it never gets one."""
        return self.existing(flags) | os.O_TMPFILE | flags & os.O_EXCL

    def of_request(self, flags: int) -> int:
        """What of an open file's flags a single read or write has to follow."""
        return flags & self._of_requests
