"""Extended attributes, xattr(7)."""

import contextlib
import errno
import os
from contextlib import AbstractContextManager
from typing import Final

from passthrough.core import xattrs
from passthrough.core.operations.base import Operations
from passthrough.core.readonly import changing
from passthrough.identity.credentials import ClearingPrivileges
from passthrough.identity.idmap import Caller
from passthrough.linux import fdpath
from passthrough.linux.errors import os_error

_ROOT: Final = 0


class ExtendedOperations(Operations):
    """What acts on the extended attributes of an inode."""

    def getxattr(self, number: int, name: bytes) -> bytes:
        """The value of one extended attribute."""
        with self._with_xattr(number, name) as fd:
            xattrs.check_read(name, restricted=self.ownership.restricted)
            return os.getxattr(fdpath.of(fd), name)

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
        self._changing(number)
        guard = ClearingPrivileges() if clear_privileges else contextlib.nullcontext()
        with self._with_xattr(number, name) as fd, guard:
            xattrs.check_set(name, restricted=self.ownership.restricted)
            os.setxattr(fdpath.of(fd), name, value, flags)

    def listxattr(self, number: int, caller: Caller) -> list[bytes]:
        """The names of the extended attributes that *caller* may know of.

        The kernel checks who gets and sets `trusted.` ones, but not who lists them.
        """
        with self._with_xattr(number) as fd:
            names = os.listxattr(fdpath.of(fd))
        privileged = caller.uid == _ROOT and not self.ownership.restricted
        return xattrs.visible(names, privileged=privileged, acls=self.config.posix_acl)

    @changing
    def removexattr(self, number: int, name: bytes) -> None:
        """Remove one extended attribute."""
        self._changing(number)
        with self._with_xattr(number, name) as fd:
            xattrs.check_removal(name, restricted=self.ownership.restricted)
            os.removexattr(fdpath.of(fd), name)

    def _with_xattr(self, number: int, name: bytes = b"") -> AbstractContextManager[int]:
        """A guard that lends a descriptor of inode *number*, if *name* is one that may pass."""
        if not self.config.xattr:
            raise os_error(errno.ENOSYS)  # which the kernel remembers, and never asks again
        if not (self.config.posix_acl and name in xattrs.ACLS):
            xattrs.check(name)
        return self.inodes.opened(number)
