"""The flags of files and their project ids, ioctl_iflags(2): the few ioctls that pass.

What others would do here, nobody could say who knows the caller's file and no more; they are
refused as on a file system that has none. Who may change flags the caller's kernel has decided by
then: the owner, and who has CAP_FOWNER. The flags of immutable and append-only files take
CAP_LINUX_IMMUTABLE, which this process lacks: changing these is refused to everybody.
"""

import errno
import fcntl
from typing import Final

from passthrough.core.operations.base import Operations
from passthrough.linux import filecalls
from passthrough.linux.errors import os_error

# How many bytes each brings and takes.
_FLAGS_BYTES, _ATTRIBUTES_BYTES = 4, 28
_READING: Final = {
    filecalls.FS_IOC_GETFLAGS: _FLAGS_BYTES,
    filecalls.FS_IOC_FSGETXATTR: _ATTRIBUTES_BYTES,
}
_CHANGING: Final = {
    filecalls.FS_IOC_SETFLAGS: _FLAGS_BYTES,
    filecalls.FS_IOC_FSSETXATTR: _ATTRIBUTES_BYTES,
}


class FlagOperations(Operations):
    """What reads and changes the flags of what is open."""

    def ioctl(self, handle: int, command: int, data: bytes, *, directory: bool = False) -> bytes:
        """Do *command* with *data* on the host's file, or *directory*; gives what it answers.

        Raises:
            OSError: ENOTTY, *command* is none of the four; EINVAL, *data* is not what it takes;
                EROFS, it changes what is hidden.
        """
        opened = self.directories[handle] if directory else self.files[handle]
        fd = opened.fd
        if command in _READING:
            return fcntl.ioctl(fd, command, bytes(_READING[command]))
        if command not in _CHANGING:
            raise os_error(errno.ENOTTY)
        if self.config.readonly:
            raise os_error(errno.EROFS)
        self._changing(opened.inode_number)
        if len(data) != _CHANGING[command]:
            raise os_error(errno.EINVAL)
        fcntl.ioctl(fd, command, data)
        return b""
