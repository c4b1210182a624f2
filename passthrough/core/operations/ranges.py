"""Parts of open files: allocated, found, copied."""

import errno
import os
from typing import Final

from passthrough.core.operations.base import Operations
from passthrough.core.readonly import changing
from passthrough.identity.idmap import Caller
from passthrough.linux import filecalls
from passthrough.linux.errors import os_error

_SHIFTING: Final = filecalls.FALLOC_FL_COLLAPSE_RANGE | filecalls.FALLOC_FL_INSERT_RANGE
_LAST: Final = filecalls.LAST_BYTE


class RangeOperations(Operations):
    """What acts on a part of an open file, or of two."""

    @changing
    def fallocate(
        self,
        handle: int,
        mode: int,
        offset: int,
        length: int,
        *,
        clear_privileges: bool = False,
        caller: Caller | None = None,
    ) -> None:
        """Allocate, free, zero or shift a range, FALLOC_FL_* in *mode*, fallocate(2).

        With *clear_privileges* the file loses its suid and sgid bits; *caller* as in `keeps_sgid`.
        """
        file = self.files[handle]
        fd = file.fd
        _check(offset, length)
        if self.config.seal_size:
            grows = offset + length > os.fstat(fd).st_size
            if mode & _SHIFTING or (grows and not mode & filecalls.FALLOC_FL_KEEP_SIZE):
                raise os_error(errno.EPERM)
        if clear_privileges or self.ownership.restricted:
            with self._clearing(file.inode_number, os.fstat(fd), caller):
                filecalls.fallocate(fd, mode, offset, length)
        else:
            filecalls.fallocate(fd, mode, offset, length)

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        """Where data, or a hole, begins at or after *offset*: SEEK_DATA, SEEK_HOLE of lseek(2)."""
        if whence not in {os.SEEK_DATA, os.SEEK_HOLE}:
            raise os_error(errno.EINVAL)  # every other place the kernel knows by itself
        if offset > _LAST:
            raise os_error(errno.ENXIO)
        # It moves the descriptor, which nobody notices: reads and writes say where.
        return os.lseek(self.files[handle].fd, offset, whence)

    @changing
    def copy_file_range(
        self,
        handle: int,
        offset: int,
        to: int,
        to_offset: int,
        length: int,
        *,
        clear_privileges: bool = False,
        caller: Caller | None = None,
    ) -> int:
        """Copy within the host, or share the space, copy_file_range(2).

        From open file *handle* to the open file *to*. Gives how many bytes; fewer than *length* at
        the end of the source, and whenever the host likes it so. With *clear_privileges* the file
        that is written to loses its suid and sgid bits; *caller* as in `keeps_sgid`.
        """
        source, target = self.files[handle].fd, self.files[to].fd
        length = min(length, _LAST - max(offset, to_offset))
        if length < 0:
            raise os_error(errno.EINVAL)
        if self.config.seal_size:
            copied = min(length, os.fstat(source).st_size - offset)
            if copied > 0 and to_offset + copied > os.fstat(target).st_size:
                raise os_error(errno.EPERM)
        if clear_privileges or self.ownership.restricted:
            with self._clearing(self.files[to].inode_number, os.fstat(target), caller):
                return os.copy_file_range(source, target, length, offset, to_offset)
        return os.copy_file_range(source, target, length, offset, to_offset)


def _check(offset: int, length: int) -> None:
    if not length or max(offset, length) > _LAST:
        raise os_error(errno.EINVAL)
    if offset + length > _LAST:
        raise os_error(errno.EFBIG)
