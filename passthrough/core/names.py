"""Names in requests: which are a component of a path, and where `..` and mount points lead."""

import errno
import os
from typing import Final

from passthrough.linux import fdpath, mountinfo, syscalls
from passthrough.linux.errors import os_error
from passthrough.linux.mountinfo import FSTYPE

DOT: Final = b"."
DOT_DOT: Final = b".."
DOTS: Final = frozenset((DOT, DOT_DOT))

_NO_COMPONENTS: Final = DOTS | {b""}
# What readlink(2) adds to the path of a descriptor whose file has lost that name, proc_pid_fd(5).
_DELETED: Final = b" (deleted)"
# How often the path of a file is asked for that is renamed meanwhile.
_TRIES: Final = 3
_CONFINED: Final = (
    syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
)


def check(name: bytes) -> None:
    """Refuse what would lead out of its directory, or name the directory itself.

    Raises:
        OSError: EINVAL.
    """
    if b"/" in name or name in _NO_COMPONENTS:
        raise os_error(errno.EINVAL)


def open_across(directory_fd: int, name: bytes) -> int:
    """Open what is mounted on *name*, unless it is passfs.

    Somebody may have bound a volume below its own source since it is served: to ask it anything
    would be to wait for an answer of our own, for ever; and in a ring of several volumes, likewise.

    Returns:
        An O_PATH descriptor that the caller owns.

    Raises:
        OSError: ELOOP, it is passfs; ESTALE, it is being unmounted; as open(2) reports it.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        number = errno.ELOOP if mountinfo.fstype_of(fd) == FSTYPE else 0
    except LookupError:
        number = errno.ESTALE
    except BaseException:
        os.close(fd)
        raise
    if number:
        os.close(fd)
        raise os_error(number)
    return fd


def check_reachable(root_fd: int, fd: int) -> None:
    """Refuse what the calling thread could not reach by name from *root_fd* downwards.

    The kernel remembers names that other callers have looked up, and names their files in requests
    of callers that could not look them up. A file whose name is gone is reachable if its directory
    is; a file with several names is, if it is by the one that it was first found by.

    Raises:
        OSError: EACCES, a directory above it may not be searched; ESTALE, it is being moved.
    """
    top = os.readlink(fdpath.of(root_fd)).rstrip(b"/") + b"/"
    for _ in range(_TRIES):
        place = os.readlink(fdpath.of(fd))
        if not place.startswith(top):
            break
        path = place.removeprefix(top) or DOT
        try:
            found = syscalls.openat2(root_fd, path, os.O_PATH | os.O_NOFOLLOW, _CONFINED)
        except FileNotFoundError:
            if place.endswith(_DELETED):
                return
            continue
        try:
            if os.path.samestat(os.fstat(found), os.fstat(fd)):
                return
        finally:
            os.close(found)
    raise os_error(errno.ESTALE)


def open_parent(root_fd: int, fd: int) -> int:
    """Open the directory that *fd*, a directory too, lies in, if that is beneath *root_fd*.

    To ask the host for `..` would lead out of the source as soon as somebody has moved the
    directory out. So its place is looked up from the source downwards, and must be where it is.

    Returns:
        An O_PATH descriptor that the caller owns.

    Raises:
        OSError: ESTALE, it is not beneath *root_fd*, or is being moved.
    """
    top = os.readlink(fdpath.of(root_fd)).rstrip(b"/") + b"/"
    place = os.readlink(fdpath.of(fd))
    if not place.startswith(top):
        raise os_error(errno.ESTALE)
    above, _, name = place.removeprefix(top).rpartition(b"/")
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        parent = syscalls.openat2(root_fd, above or DOT, flags, _CONFINED)
    except OSError:
        raise os_error(errno.ESTALE) from None
    try:
        if os.path.samestat(os.lstat(name, dir_fd=parent), os.fstat(fd)):
            return parent
    except OSError:
        pass  # no such name, any more
    os.close(parent)
    raise os_error(errno.ESTALE)
