"""Extended attributes, xattr(7)."""

import errno
import os

from passthrough import xattrs
from passthrough.errors import os_error
from passthrough.idmap import Caller
from passthrough.inodes import Inode
from passthrough.operations.base import Operations
from passthrough.readonly import changing


class ExtendedOperations(Operations):
    """What acts on the extended attributes of an inode."""

    def getxattr(self, number: int, name: bytes) -> bytes:
        """The value of one extended attribute."""
        return os.getxattr(self._with_xattr(number, name).path, name)

    @changing
    def setxattr(self, number: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set one extended attribute; *flags* are XATTR_CREATE and XATTR_REPLACE, setxattr(2)."""
        os.setxattr(self._with_xattr(number, name).path, name, value, flags)

    def listxattr(self, number: int, caller: Caller) -> list[bytes]:
        """The names of the extended attributes that *caller* may know of.

        The kernel checks who gets and sets `trusted.` ones, but not who lists them.
        """
        return xattrs.visible(os.listxattr(self._with_xattr(number).path), caller)

    @changing
    def removexattr(self, number: int, name: bytes) -> None:
        """Remove one extended attribute."""
        os.removexattr(self._with_xattr(number, name).path, name)

    def _with_xattr(self, number: int, name: bytes = b"") -> Inode:
        """Inode *number*, if there are extended attributes, and *name* is one that may pass."""
        if not self.config.xattr:
            raise os_error(errno.ENOSYS)  # which the kernel remembers, and never asks again
        xattrs.check(name)
        return self.inodes[number]
