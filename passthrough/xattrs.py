"""Which extended attributes pass through, xattr(7)."""

import errno
import os
from collections.abc import Iterable
from typing import Final

from passthrough.errors import os_error
from passthrough.idmap import Caller

# The kernel leaves it to the file system who may touch these (ACLs of POSIX, NFSv4, CIFS, NTFS),
# and without POSIX_ACL negotiated it would have an ACL stored and then not honour it.
_SYSTEM_PREFIX: Final = b"system."
ACLS: Final = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})


def check(name: bytes) -> None:
    """Refuse what must not be got or set.

    Raises:
        OSError: EOPNOTSUPP for an attribute that stands for an ACL or the like.
    """
    if name.startswith(_SYSTEM_PREFIX):
        raise os_error(errno.EOPNOTSUPP)


def visible(names: Iterable[str], caller: Caller, *, acls: bool = False) -> list[bytes]:
    """Of the host's *names*, those that *caller* may know of; *acls* says if ACLs are honoured."""
    hidden = (_SYSTEM_PREFIX,) if caller.uid == 0 else (_SYSTEM_PREFIX, b"trusted.")
    return [
        name
        for name in map(os.fsencode, names)
        if not name.startswith(hidden) or (acls and name in ACLS)
    ]
