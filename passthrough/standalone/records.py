"""The mounts without Docker of this machine, and whether processes serve them.

Each mount has a file, named after the device of its file system. The processes that serve the mount
inherit a descriptor of this file with a lock, flock(2). The kernel releases the lock when the last
of them has ended. The file holds the mount point, because the kernel gives a device's number to
another file system later.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from passthrough.linux import mountinfo
from passthrough.linux.mountinfo import MountEntry

DIRECTORY: Final = Path("/run/passfs/standalone")
_LOOK_S: Final = 0.01
_NO_PLACE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def add(mount: MountEntry) -> int:
    """Record *mount*; return a descriptor with the lock, which the caller owns.

    Drops the records of mounts that are gone. If this process may not write to /run, as root of a
    user namespace, there is no record, and the descriptor is one of /dev/null.
    """
    try:
        return _add(mount)
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _add(mount: MountEntry) -> int:
    DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = _path_of(mount)
    with _sole_writer():
        _sweep()
        # Processes of an earlier mount with this number may be about to end: they keep their lock.
        path.unlink(missing_ok=True)
        # For reading: a worker has no use for the file.
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.write_bytes(mount.target)
        except BaseException:
            os.close(fd)
            raise
    return fd


@contextmanager
def _sole_writer() -> Iterator[None]:
    """Have other processes wait: one that sweeps would take a record without its lock for old."""
    directory = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def has(mount: MountEntry) -> bool:
    """Return whether *mount* was made without Docker; its processes may have ended."""
    try:
        return _path_of(mount).read_bytes() == mount.target
    except OSError as error:
        if error.errno not in _NO_PLACE | {errno.ENOENT}:
            raise
    return False


def drop(mount: MountEntry, within_s: float) -> bool:
    """Drop the record of *mount*, which is unmounted, once no process serves it.

    Returns:
        False if processes live on after *within_s*; the record stays.
    """
    until = time.monotonic() + within_s
    while has(mount) and not _drop(_path_of(mount)):
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_S)
    return True


def _path_of(mount: MountEntry) -> Path:
    return DIRECTORY / f"{os.major(mount.device)}:{os.minor(mount.device)}"


def _sweep() -> None:
    """Drop the records of mounts that plain umount(8) has ended."""
    present = {_path_of(mount).name: mount.target for mount in mountinfo.read()}
    for path in DIRECTORY.iterdir():
        with suppress(FileNotFoundError):
            if path.read_bytes() != present.get(path.name):
                _drop(path)


def _drop(path: Path) -> bool:
    """Remove a record that no process has locked; return whether there is none now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
