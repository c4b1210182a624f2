"""Mount points: one directory for each volume in the mount directory, and the mounts on them.

The plugin has a lock on the mount directory. So a passfs mount there is its own, or an earlier
plugin has left it. File systems of other types stay as they are.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from passthrough.linux import mountinfo
from passthrough.linux.mountinfo import FSTYPE
from passthrough.options.effective import Effective
from passthrough.worker.fuse_mount import mount, unmount
from plugin.errors import CannotStart
from plugin.reserve import Reserve
from plugin.volume import FileName

log = logging.getLogger(__name__)

# No user of the host reaches a volume through its mount point; containers get a mount of their own.
MOUNT_DIR_MODE = 0o700


class FuseConnection(NamedTuple):
    """A FUSE connection, as mount(2) made it."""

    fuse_fd: int
    """The descriptor of /dev/fuse."""
    device: int
    """st_dev of the file system; it tells the mount from any other at the same mount point."""


def path_of(mount_dir: Path, directory: FileName) -> Path:
    """Return the mount point in *mount_dir* of a volume, by the *directory* of its record."""
    return mount_dir / directory


def mounts_at(target: Path) -> list[mountinfo.MountEntry]:
    """Return the mounts at *target*, the uppermost last."""
    return mountinfo.at(os.fsencode(target))


def mounts_below(mount_dir: Path) -> dict[Path, list[mountinfo.MountEntry]]:
    """Read all mounts below *mount_dir* at once; return them by mount point, the uppermost last."""
    above = os.fsencode(mount_dir)
    found: dict[Path, list[mountinfo.MountEntry]] = {}
    for entry in mountinfo.read():
        if mountinfo.is_below(entry.target, above):
            found.setdefault(Path(os.fsdecode(entry.target)), []).append(entry)
    return found


def attach(target: Path, options: Effective, reserve: Reserve) -> FuseConnection:
    """Make the mount point *target* and mount there; *reserve* has room for a mount point.

    Nothing may be mounted at *target*.

    Raises:
        OSError: the mount point cannot be made, or mount(2) has failed; nothing is left.
    """
    try:
        reserve.run(partial(target.mkdir, mode=MOUNT_DIR_MODE))
    except FileExistsError:
        # A file system that ignores case gives two volumes one directory.
        if target.name not in os.listdir(target.parent):
            raise
    with ExitStack() as undo:
        undo.callback(remove, target)
        fuse_fd = mount(target, options)
        undo.callback(unmount, target)
        undo.callback(os.close, fuse_fd)
        connection = FuseConnection(fuse_fd, mounts_at(target)[-1].device)
        undo.pop_all()
        return connection


def detach(target: Path, present: Iterable[mountinfo.MountEntry] = ()) -> None:
    """Unmount all mounts at *target*; *present* are these mounts, if the caller has read the table.

    If the kernel has pages left to write, the call blocks until the worker answers or ends.

    Raises:
        OSError: a mount is of another type, or umount2(2) has failed.
    """
    entries = [*present] or mounts_at(target)
    while entries:
        if (fstype := entries.pop().fstype) != FSTYPE:
            raise OSError(errno.EBUSY, f"a file system of type {fstype} is mounted on it")
        try:
            unmount(target)
        except OSError as error:
            # EINVAL: a thread that an earlier call abandoned has unmounted it meanwhile.
            if error.errno != errno.EINVAL:
                raise


def remove(target: Path) -> None:
    """Remove a mount point by rmdir(2), which loses no files; if that fails, log a warning."""
    try:
        target.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("cannot remove %s: %s", target, error.strerror)


@contextmanager
def locked(mount_dir: Path) -> Iterator[Path]:
    """Make *mount_dir*, and lock it during the block; yields its path as mountinfo names it.

    Another plugin would take the mounts for leftovers and unmount them. If this process dies, the
    kernel releases the lock, flock(2).

    Raises:
        CannotStart: another plugin has the lock.
    """
    mount_dir.mkdir(mode=MOUNT_DIR_MODE, parents=True, exist_ok=True)
    fd = os.open(mount_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotStart(
                f"another passfs mounts its volumes in {mount_dir}; stop it first, or give this one"
                " another PASSFS_MOUNT_DIR"
            ) from error
        yield mount_dir.resolve()
    finally:
        os.close(fd)


def clear(mount_dir: Path, kept: Collection[Path] = ()) -> None:
    """Remove the mounts and mount points that an earlier plugin left in *mount_dir*, except *kept*.

    If the kernel has pages left to write, the call blocks until the worker answers or ends.
    """
    above = os.fsencode(mount_dir)
    skipped = set(kept)
    for entry in reversed(mountinfo.read()):
        target = Path(os.fsdecode(entry.target))
        if target in skipped or not mountinfo.is_below(entry.target, above):
            continue
        if entry.fstype == FSTYPE:
            log.info("unmounting %s, which an earlier plugin has left", target)
            unmount(target)
        else:  # a foreign mount stays, and so do the mounts that it covers
            skipped.add(target)
    for leftover in mount_dir.iterdir():
        if leftover not in skipped:
            remove(leftover)
