"""Which extended attributes pass through, xattr(7)."""

import errno
import os
from collections.abc import Iterable
from typing import Final

from passthrough.linux.errors import os_error

# The kernel leaves it to the file system who may touch these (ACLs of POSIX, NFSv4, CIFS, NTFS),
# and without POSIX_ACL negotiated it would have an ACL stored and then not honour it.
_SYSTEM_PREFIX: Final = b"system."
_USER_PREFIX: Final = b"user."
_TRUSTED_PREFIX: Final = b"trusted."
# The kernel removes it by itself when a file is written to, or given to another owner.
FILE_CAPABILITIES: Final = b"security.capability"
ACLS: Final = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})


def check(name: bytes) -> None:
    """Refuse what must not be got or set.

    Raises:
        OSError: EOPNOTSUPP for an attribute that stands for an ACL or the like.
    """
    if name.startswith(_SYSTEM_PREFIX):
        raise os_error(errno.EOPNOTSUPP)


def check_read(name: bytes, *, restricted: bool) -> None:
    """Refuse `trusted.` attributes where container root is not the host's, xattr(7).

    `security.` ones every user of the host may read. The kernel asks for file capabilities itself.

    Raises:
        OSError: ENODATA.
    """
    if restricted and name.startswith(_TRUSTED_PREFIX):
        raise os_error(errno.ENODATA)


def check_set(name: bytes, *, restricted: bool) -> None:
    """Refuse all but `user.` attributes where container root is not the host's.

    Others give a program power on the host, or tell a file system there what to do.

    Raises:
        OSError: EPERM.
    """
    if restricted and not name.startswith(_USER_PREFIX):
        raise os_error(errno.EPERM)


def check_removal(name: bytes, *, restricted: bool) -> None:
    """Refuse what `check_set` refuses, but for file capabilities: their removal takes power away.

    Raises:
        OSError: EPERM.
    """
    if name != FILE_CAPABILITIES:
        check_set(name, restricted=restricted)


def visible(names: Iterable[str], *, privileged: bool, acls: bool = False) -> list[bytes]:
    """Of the host's *names*, those that a caller may know of; *acls* says if ACLs are honoured.

    A *privileged* caller has the host's CAP_SYS_ADMIN.
    """
    hidden = (_SYSTEM_PREFIX,) if privileged else (_SYSTEM_PREFIX, _TRUSTED_PREFIX)
    return [
        name
        for name in map(os.fsencode, names)
        if not name.startswith(hidden) or (acls and name in ACLS)
    ]
