"""Extended attributes, xattr(7)."""

import errno
import os
from contextlib import AbstractContextManager

from passthrough import fdpath, xattrs
from passthrough.errors import os_error
from passthrough.idmap import Caller
from passthrough.operations.base import Operations
from passthrough.readonly import changing


class ExtendedOperations(Operations):
    """What acts on the extended attributes of an inode."""

    def getxattr(self, number: int, name: bytes) -> bytes:
        """The value of one extended attribute."""
        with self._with_xattr(number, name) as fd:
            return os.getxattr(fdpath.of(fd), name)

    @changing
    def setxattr(self, number: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set one extended attribute; *flags* are XATTR_CREATE and XATTR_REPLACE, setxattr(2)."""
        self._changing(number)
        with self._with_xattr(number, name) as fd:
            os.setxattr(fdpath.of(fd), name, value, flags)

    def listxattr(self, number: int, caller: Caller) -> list[bytes]:
        """The names of the extended attributes that *caller* may know of.

        The kernel checks who gets and sets `trusted.` ones, but not who lists them.
        """
        with self._with_xattr(number) as fd:
            return xattrs.visible(os.listxattr(fdpath.of(fd)), caller)

    @changing
    def removexattr(self, number: int, name: bytes) -> None:
        """Remove one extended attribute."""
        self._changing(number)
        with self._with_xattr(number, name) as fd:
            os.removexattr(fdpath.of(fd), name)

    def _with_xattr(self, number: int, name: bytes = b"") -> AbstractContextManager[int]:
        """A guard that lends a descriptor of inode *number*, if *name* is one that may pass."""
        if not self.config.xattr:
            raise os_error(errno.ENOSYS)  # which the kernel remembers, and never asks again
        xattrs.check(name)
        return self.inodes.opened(number)
