"""Extended attributes, xattr(7)."""

import contextlib
import errno
import os

from passthrough import xattrs
from passthrough.credentials import ClearingPrivileges
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
    def setxattr(
        self,
        number: int,
        name: bytes,
        value: bytes,
        flags: int = 0,
        *,
        clear_privileges: bool = False,
    ) -> None:
        """Set one extended attribute; *flags* are XATTR_CREATE and XATTR_REPLACE, setxattr(2).

        With *clear_privileges*, setting an ACL takes the sgid bit away.
        """
        inode = self._with_xattr(number, name)
        with ClearingPrivileges() if clear_privileges else contextlib.nullcontext():
            os.setxattr(inode.path, name, value, flags)

    def listxattr(self, number: int, caller: Caller) -> list[bytes]:
        """The names of the extended attributes that *caller* may know of.

        The kernel checks who gets and sets `trusted.` ones, but not who lists them.
        """
        return xattrs.visible(
            os.listxattr(self._with_xattr(number).path), caller, acls=self.config.posix_acl
        )

    @changing
    def removexattr(self, number: int, name: bytes) -> None:
        """Remove one extended attribute."""
        os.removexattr(self._with_xattr(number, name).path, name)

    def _with_xattr(self, number: int, name: bytes = b"") -> Inode:
        """Inode *number*, if there are extended attributes, and *name* is one that may pass."""
        if not self.config.xattr:
            raise os_error(errno.ENOSYS)  # which the kernel remembers, and never asks again
        if not (self.config.posix_acl and name in xattrs.ACLS):
            xattrs.check(name)
        return self.inodes[number]
