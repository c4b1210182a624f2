"""FUSE passthrough: how deep the source lies, and why files do not pass through.

The core makes the ids by which the kernel finds the host's files.
"""

import errno
import os
from typing import Final

# A mount may stand on a file system that stands on no other, or on one that stands on one more. The
# kernel stacks no higher, so that no overlayfs can stand on a mount of the latter kind.
_SHALLOW: Final = 1
_DEEP: Final = 2
# linux/magic.h: overlayfs, FUSE (a mount of which may pass through to another), ecryptfs.
_STACKED: Final = frozenset({0x794C_7630, 0x6573_5546, 0xF15F})

# Errors of the ioctl with a meaning of their own.
_WHY: Final = {
    errno.ELOOP: "they lie on too many file systems, one on the other",
    errno.EPERM: "it takes CAP_SYS_ADMIN, and the worker has none that the host's kernel goes by",
    errno.EINVAL: "their file system knows no O_DIRECT, which allow_direct_io=false is to accept",
}


def stack_depth(filesystem_type: int) -> int:
    """Return how deep files lie on a source of this type, for `max_stack_depth` of INIT.

    With a depth of 1, users may stack an overlayfs on the volume.
    """
    return _DEEP if filesystem_type in _STACKED else _SHALLOW


def explain(number: int) -> str:
    """Return why files do not pass through, by the errno *number*."""
    return _WHY.get(number) or str(OSError(number, os.strerror(number)))
