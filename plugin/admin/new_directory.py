"""Makes a directory of the host for a volume that asks for a missing one, and undoes that.

All functions block.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from passthrough.linux import syscalls

# As for a volume's own directory.
NEW_MODE = 0o755

_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV


def make(parent: int, name: str, mode: int | None, owner: tuple[int, int]) -> None:
    """Make a directory; on return it survives a power cut, with its owner and mode.

    Raises:
        OSError: as the kernel reports it; EEXIST or ENOTEMPTY if another program has replaced the
            directory.
    """
    os.mkdir(name, NEW_MODE, dir_fd=parent)
    with removed_on_failure(parent, name):
        flags = os.O_RDONLY | os.O_DIRECTORY
        fd = syscalls.openat2(parent, os.fsencode(name), flags, _RESOLVE)
    try:
        _check_new(fd)
        with removed_on_failure(parent, name):
            os.fchown(fd, *owner)
            os.fchmod(fd, NEW_MODE if mode is None else mode)
            os.fsync(fd)
            os.fsync(parent)
    finally:
        os.close(fd)


def _check_new(fd: int) -> None:
    """Refuse a directory that a user with write access to the parent has put into the place."""
    for replaced, number in (
        (os.fstat(fd).st_uid != os.geteuid(), errno.EEXIST),
        (os.listdir(fd), errno.ENOTEMPTY),
    ):
        if replaced:
            raise OSError(number, os.strerror(number))


@contextmanager
def removed_on_failure(parent: int, name: str) -> Iterator[None]:
    """Remove a new directory again if the body fails."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            os.rmdir(name, dir_fd=parent)
        raise
