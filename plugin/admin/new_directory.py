"""Makes a directory of the host for a volume that asks for a missing one, and undoes that.

The directory appears at its name with owner and mode: it is made under a hidden name and renamed.
If the plugin is killed in between, an empty directory `.passfs-…` is left over.

All functions block.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple, Self

from passthrough.linux import syscalls

# As for a volume's own directory.
NEW_MODE: Final = 0o755

_HIDDEN_MODE: Final = 0o700
_RESOLVE: Final = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV


class Made(NamedTuple):
    """The identity of a directory that `make` has made."""

    device: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> Self:
        """Return the identity of a directory with the status *found*."""
        return cls(found.st_dev, found.st_ino)

    def remove(self, parent: int, name: str) -> None:
        """Remove the directory if it is empty and has this *name*; otherwise leave all as it is."""
        with suppress(OSError):
            if Made.of(os.stat(name, dir_fd=parent, follow_symlinks=False)) == self:
                os.rmdir(name, dir_fd=parent)


def make(parent: int, name: str, mode: int | None, owner: tuple[int, int]) -> Made | None:
    """Make a directory; on return it survives a power cut, with its owner and mode.

    Returns:
        None if another program has made the directory meanwhile.

    Raises:
        OSError: as the kernel reports it; EPERM if it is another user's, ENOTEMPTY if another
            program has replaced it.
    """
    hidden = f".passfs-{secrets.token_hex(8)}"
    made = _make(parent, hidden, mode, owner)
    with _removed_on_failure(made, parent, hidden):
        try:
            names = (parent, os.fsencode(hidden), parent, os.fsencode(name))
            syscalls.renameat2(*names, syscalls.RENAME_NOREPLACE)
        except FileExistsError:
            made.remove(parent, hidden)
            return None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            made.remove(parent, hidden)
            return _make_in_place(parent, name, mode, owner)
    with _removed_on_failure(made, parent, name):
        os.fsync(parent)
    return made


def _make_in_place(parent: int, name: str, mode: int | None, owner: tuple[int, int]) -> Made | None:
    """Make a directory on a file system without RENAME_NOREPLACE, such as NFS.

    For an instant it is root's, and no one else's. A plain rename(2) could replace another one.
    """
    try:
        made = _make(parent, name, mode, owner)
    except FileExistsError:
        return None
    with _removed_on_failure(made, parent, name):
        os.fsync(parent)
    return made


def _make(parent: int, name: str, mode: int | None, owner: tuple[int, int]) -> Made:
    """Make a directory, and give it owner and mode."""
    os.mkdir(name, _HIDDEN_MODE, dir_fd=parent)
    try:
        fd = _open_new(parent, name)
    except OSError:
        with suppress(OSError):  # such as ENOTEMPTY
            os.rmdir(name, dir_fd=parent)
        raise
    try:
        made = Made.of(os.fstat(fd))
        with _removed_on_failure(made, parent, name):
            os.fchown(fd, *owner)
            os.fchmod(fd, NEW_MODE if mode is None else mode)
            os.fsync(fd)
    finally:
        os.close(fd)
    return made


def _open_new(parent: int, name: str) -> int:
    """Open a new directory."""
    fd = syscalls.openat2(parent, os.fsencode(name), os.O_RDONLY | os.O_DIRECTORY, _RESOLVE)
    try:
        _check_new(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_new(fd: int) -> None:
    """Refuse a directory that a user with write access to the parent has put into the place.

    A server of NFS with root_squash gives each new directory to another user than root.
    """
    if (user := os.fstat(fd).st_uid) != os.geteuid():
        reason = f"user {user} owns the new directory, as on NFS with root_squash"
        raise PermissionError(errno.EPERM, reason)
    if os.listdir(fd):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


@contextmanager
def _removed_on_failure(made: Made, parent: int, name: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        made.remove(parent, name)
        raise
