"""Mount points, and what lies on them: one directory for each volume in the mount directory.

Everything here is ours alone: the mount directory is claimed, and what is mounted in it that is no
volume stays as it is.
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


class Attached(NamedTuple):
    """What mount(2) has made."""

    fuse_fd: int
    device: int
    """As in st_dev, to tell this mount from any other at the same place."""


def mounts_at(target: Path) -> list[mountinfo.MountEntry]:
    """What is mounted at *target*, the uppermost last."""
    return mountinfo.at(os.fsencode(target))


def at(mount_dir: Path, directory: FileName) -> Path:
    """Return the mount point in *mount_dir* of the volume whose record says *directory*."""
    return mount_dir / directory


def by_target(mount_dir: Path) -> dict[Path, list[mountinfo.MountEntry]]:
    """Whatever is mounted below *mount_dir*, the uppermost of one place last, read at once."""
    above = os.fsencode(mount_dir)
    found: dict[Path, list[mountinfo.MountEntry]] = {}
    for entry in mountinfo.read():
        if mountinfo.is_below(entry.target, above):
            found.setdefault(Path(os.fsdecode(entry.target)), []).append(entry)
    return found


def detach(target: Path, present: Iterable[mountinfo.MountEntry] = ()) -> None:
    """Unmount what is mounted at *target*: *present*, if a sweep has found it, and all the rest.

    Blocks as long as a worker that lives answers nothing, if it has pages left to write.

    Raises:
        OSError: a mount cannot be taken away, or is not ours.
    """
    entries = [*present] or mounts_at(target)
    while entries:
        if (fstype := entries.pop().fstype) != FSTYPE:
            raise OSError(errno.EBUSY, f"a file system of type {fstype} is mounted on it")
        try:
            unmount(target)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a thread that was given up has been faster
                raise


def attach(target: Path, config: Effective, reserve: Reserve) -> Attached:
    """Mount at *target*, where nothing is mounted; *reserve* has room for a mount point.

    Raises:
        OSError: the mount point cannot be made, or mount(2) has failed.
    """
    try:
        reserve.within(partial(target.mkdir, mode=MOUNT_DIR_MODE))
    except FileExistsError:
        if target.name not in os.listdir(target.parent):  # on a file system that ignores case
            raise
    with ExitStack() as undo:
        undo.callback(remove, target)
        fuse_fd = mount(target, config)
        undo.callback(unmount, target)
        undo.callback(os.close, fuse_fd)
        attached = Attached(fuse_fd, mounts_at(target)[-1].device)
        undo.pop_all()
        return attached


def remove(target: Path) -> None:
    """Remove a mount point; rmdir(2), so that nothing in it can be lost. One may stay, logged."""
    try:
        target.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("cannot remove %s: %s", target, error.strerror)


@contextmanager
def claimed(mount_dir: Path) -> Iterator[Path]:
    """Make *mount_dir* and hold it against other plugins, which would clear away what is ours.

    Gives the directory as mountinfo names it. The kernel lets go when this process dies, flock(2).
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


def clear(mount_dir: Path, spared: Collection[Path] = ()) -> None:
    """Take away what a plugin that died has left in *mount_dir*, but for the *spared* places.

    Blocks as long as a worker that lives answers nothing, if it has pages left to write.
    """
    above = os.fsencode(mount_dir)
    covered = set(spared)
    for entry in reversed(mountinfo.read()):
        target = Path(os.fsdecode(entry.target))
        if target in covered or not mountinfo.is_below(entry.target, above):
            continue
        if entry.fstype == FSTYPE:
            log.info("unmounting %s, which an earlier plugin has left", target)
            unmount(target)
        else:  # with whatever lies below
            covered.add(target)
    for leftover in mount_dir.iterdir():
        if leftover not in covered:
            remove(leftover)
