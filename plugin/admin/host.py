"""Facts about the plugin's host: process ids, and the path of the plugin's own data.

In a container, such as that of a managed plugin, both differ from what the plugin itself sees. If
the plugin cannot prove one of them, it does not tell it.

All of it blocks; a path may lead through a dead network file system.

The plugin follows the mount of its data directory to a path below `PASSFS_HOST_ROOT`, and tells the
path only if stat(2) finds the very directory there. The kernel gives the process behind a
descriptor in the pid namespace of the procfs that is asked: the plugin asks the host's, once for
each worker.
"""

import os
from pathlib import Path
from typing import NamedTuple

from passthrough.linux import mountinfo

HERE = Path("/")
FSTYPE = "proc"


class Machine(NamedTuple):
    """The facts that are known; the others are None."""

    proc: Path | None = None
    """The host's /proc, by the path that the plugin sees."""
    data_dir: Path | None = None
    """The path of the data directory on the host."""


def look(data_dir: Path, root: Path, directory: Path) -> Machine:
    """Return the facts about the host, whose *directory* the plugin sees at *root*."""
    return Machine(processes(root), path_on_host(data_dir, root, directory))


def processes(root: Path) -> Path | None:
    """Return where the plugin sees the host's /proc, if it sees it below *root*."""
    proc = root.resolve() / "proc"
    mounts = [entry for entry in mountinfo.read() if entry.target == os.fsencode(proc)]
    if not mounts or mounts[-1].fstype != FSTYPE:
        return None
    try:
        os.readlink(proc / "self")
    except OSError:  # of a pid namespace that the plugin is not in
        return None
    return proc


def path_on_host(place: Path, root: Path, directory: Path) -> Path | None:
    """Return the path on the host of the directory *place*.

    The plugin sees the host's *directory* at *root*. A path is right only if it leads there to the
    very directory: the mount that shows *place* to a container may have been changed by hand.
    """
    root = root.resolve()
    if root == HERE:
        return _told(directory / place.resolve().relative_to(HERE))
    try:
        own = os.stat(place)
        for path in sorted(_candidates(place, root), key=lambda path: len(os.fspath(path))):
            if _is(path, own):
                return _told(directory / path.relative_to(root))
    except (OSError, LookupError):  # its file system has gone, or its mount
        pass
    return None


def _candidates(place: Path, root: Path) -> list[Path]:
    """Return where the file system of *place* would show it below *root*."""
    fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mounts = mountinfo.read()
        device, inner = mountinfo.place(mounts, fd)
    finally:
        os.close(fd)
    shown = [
        os.path.normpath(os.path.join(mount.target, os.path.relpath(inner, mount.root)))
        for mount in mounts
        if mount.device == device and mountinfo.is_below(inner, mount.root)
    ]
    above = os.fsencode(root)
    return [Path(os.fsdecode(path)) for path in shown if mountinfo.is_below(path, above)]


def _is(path: Path, own: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), own)
    except OSError:  # something else is mounted above
        return False


def _told(path: Path) -> Path | None:
    """Return *path* if it can be told in JSON."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return None
    return path
