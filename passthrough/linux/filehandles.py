"""Whether the files of a mount can be held by kernel file handles, and what opens them then.

Not every file system names its files for good (overlayfs does with nfs_export alone, most FUSE ones
do not), and not every process may open a file by such a name.
"""

import errno
import os
from typing import Final

from passthrough.linux import fdpath, syscalls

# A descriptor that was opened for real: open_by_handle_at(2) takes no O_PATH one.
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def open_mount(directory_fd: int) -> int:
    """A descriptor by which handles on the mount of *directory_fd* are opened; the caller's.

    Goes the whole way once, from the directory to its handle and back.

    Raises:
        OSError: there are no handles on this mount, or this process cannot open any.
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
    """Why files on the mount of *directory_fd* cannot be held by handle; empty if they can."""
    try:
        os.close(open_mount(directory_fd))
    except OSError as error:
        return reason(error)
    return ""


def reason(error: OSError) -> str:
    """What an error of `open_mount` means."""
    if error.errno == errno.EPERM:
        return "opening by file handle needs CAP_DAC_READ_SEARCH, which this process lacks"
    return f"the file system has no file handles that can be opened ({error.strerror})"
