"""Facts about the plugin's host: its process ids, and its path of the plugin's data directory.

In a container, such as that of a managed plugin, the plugin sees other ids and paths than the host.
The plugin uses a fact only if stat(2) or /proc confirms it.

All functions block: a path may lead through a dead network file system.
"""

import os
from pathlib import Path
from typing import NamedTuple

from passthrough.linux import mountinfo

ROOT = Path("/")
PROC_FSTYPE = "proc"


class HostFacts(NamedTuple):
    """The facts that are confirmed; all others are None."""

    proc: Path | None = None
    """The path at which the plugin sees the host's /proc."""
    data_dir: Path | None = None
    """The host's path of the data directory."""


def facts(data_dir: Path, root: Path, directory: Path) -> HostFacts:
    """Return the facts about the host; the plugin sees the host's *directory* at *root*."""
    return HostFacts(host_proc(root), path_on_host(data_dir, root, directory))


def host_proc(root: Path) -> Path | None:
    """Return the path below *root* at which the plugin sees the host's /proc, or None."""
    proc = root.resolve() / "proc"
    mounts = [entry for entry in mountinfo.read() if entry.target == os.fsencode(proc)]
    if not mounts or mounts[-1].fstype != PROC_FSTYPE:
        return None
    try:
        os.readlink(proc / "self")
    except OSError:  # the plugin is not in the pid namespace of this proc
        return None
    return proc


def path_on_host(own_path: Path, root: Path, directory: Path) -> Path | None:
    """Return the host's path of the directory that the plugin sees at *own_path*, or None.

    The plugin sees the host's *directory* at *root*. stat(2) proves a path, because the mount of
    the directory in a container may have been changed by hand.
    """
    root = root.resolve()
    if root == ROOT:
        return _if_utf8(directory / own_path.resolve().relative_to(ROOT))
    try:
        own = os.stat(own_path)
        for path in sorted(_candidates(own_path, root), key=lambda path: len(os.fspath(path))):
            if _is_same(path, own):
                return _if_utf8(directory / path.relative_to(root))
    except (OSError, LookupError):  # the file system or its mount is gone
        pass
    return None


def _candidates(own_path: Path, root: Path) -> list[Path]:
    """Return the paths below *root* at which mounts of the same file system show the directory."""
    fd = os.open(own_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mounts = mountinfo.read()
        device, inner = mountinfo.position(mounts, fd)
    finally:
        os.close(fd)
    shown = [
        os.path.normpath(os.path.join(mount.target, os.path.relpath(inner, mount.root)))
        for mount in mounts
        if mount.device == device and mountinfo.is_below(inner, mount.root)
    ]
    above = os.fsencode(root)
    return [Path(os.fsdecode(path)) for path in shown if mountinfo.is_below(path, above)]


def _is_same(path: Path, own: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), own)
    except OSError:  # another file system is mounted over the directory
        return False


def _if_utf8(path: Path) -> Path | None:
    """Return *path* if JSON can represent it, else None."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return None
    return path
