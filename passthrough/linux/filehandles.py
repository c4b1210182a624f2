"""Support of a mount for kernel file handles, and the descriptor that opens them.

Not every file system has persistent file handles: overlayfs has them only with nfs_export, and most
FUSE file systems have none. A process needs CAP_DAC_READ_SEARCH to open a file by its handle.
"""

import errno
import os
from typing import Final

from passthrough.linux import fdpath, syscalls

# open_by_handle_at(2) takes no O_PATH descriptor.
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def open_mount(directory_fd: int) -> int:
    """Open a descriptor for `open_by_handle_at` on the mount of *directory_fd*.

    Tries the directory's own file handle.

    Returns:
        A descriptor that the caller owns.

    Raises:
        OSError: the mount has no file handles, or this process cannot open them.
    """
    _, handle = syscalls.name_to_handle_at(directory_fd)
    fd = os.open(fdpath.of(directory_fd), _FLAGS)
    try:
        os.close(syscalls.open_by_handle_at(fd, handle, os.O_PATH))
    except BaseException:
        os.close(fd)
        raise
    return fd


def obstacle(directory_fd: int) -> str:
    """Return why file handles are unavailable on the mount of *directory_fd*, or an empty text."""
    try:
        os.close(open_mount(directory_fd))
    except OSError as error:
        return reason(error)
    return ""


def reason(error: OSError) -> str:
    """Return the meaning of an error of `open_mount`."""
    if error.errno == errno.EPERM:
        return "opening by file handle needs CAP_DAC_READ_SEARCH, which this process lacks"
    return f"the file system has no file handles that can be opened ({error.strerror})"
