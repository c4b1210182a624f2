"""Makes a mount without Docker: its options, the checks of its directories, mount(2)."""

import errno
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from passthrough.linux import kernel_features, mountinfo
from passthrough.linux.mountinfo import FSTYPE, MountEntry
from passthrough.options.effective import Effective, require_io_uring, resolve
from passthrough.options.parsing import parse_options
from passthrough.options.table import OptionError
from passthrough.options.vocabulary import canonical
from passthrough.standalone import interrupts, records
from passthrough.worker import fuse_mount
from passthrough.worker.handover import Handover

_OWNER: Final = "owner, which shows every file as one user's, or chown(1) on the source"
_IN_PLACE: Final = {"mode": "chmod(1) on the source", "uid": _OWNER, "gid": _OWNER}
"""Option for a new directory -> the words of a refusal that name another way."""
_WHY: Final = "is for volumes of the plugin"
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Wanted(NamedTuple):
    """A mount to be made, checked as far as its texts go."""

    source: str
    mountpoint: str
    options: Effective
    named: bool
    """True if the options give `fsname`; otherwise the mount has the name of the source."""


class Made(NamedTuple):
    """A mount for which no process answers yet; the caller owns the descriptors."""

    wanted: Wanted
    entry: MountEntry
    fuse_fd: int
    source_fd: int
    lock_fd: int
    """Of the record: it has to stay open while a process serves the mount."""

    @property
    def handover(self) -> Handover:
        """The hand-over to the process that serves."""
        return Handover(
            volume=self.wanted.source,
            config=self.wanted.options.requested,
            fuse_fd=self.fuse_fd,
            source_fd=self.source_fd,
        )

    def close(self) -> None:
        """Close this process's descriptors of the mount."""
        for fd in (self.fuse_fd, self.source_fd, self.lock_fd):
            os.close(fd)

    def undo(self) -> None:
        """Unmount, unless it is done already, and forget the mount."""
        if self.is_uppermost():
            fuse_mount.unmount(Path(os.fsdecode(self.entry.target)))
        records.drop(self.entry, within_s=0)

    def is_uppermost(self) -> bool:
        """Return whether the mount is there, and none is on top of it."""
        uppermost = mountinfo.at(self.entry.target)[-1:]
        ours = (self.entry.mount_id, self.entry.device)
        return any((mount.mount_id, mount.device) == ours for mount in uppermost)


def wanted(source: str, mountpoint: str, given: Mapping[str, str]) -> Wanted:
    """Return the mount that the texts ask for.

    Raises:
        OptionError: an option is refused, or a directory has no name.
    """
    for name, text in (("source", source), ("mountpoint", mountpoint)):
        if not text:  # Path takes it for the working directory
            raise OptionError(name, text, "a directory; '.' is the working directory")
    for written, text in given.items():
        if accepted := _IN_PLACE.get(canonical(written)):
            raise OptionError(written, text, accepted, _WHY)
    release = kernel_features.linux_release()
    requested = parse_options(given, release, has_source=True)
    if requested.subpath is not None:
        accepted = "the directory itself as the source"
        raise OptionError("subpath", requested.subpath, accepted, _WHY)
    if requested.create:
        raise OptionError("create", "true", "mkdir(1) before the mount", _WHY)
    options = resolve(requested, release)
    require_io_uring(options, kernel_features.io_uring_obstacle())
    return Wanted(source, mountpoint, options, "fsname" in map(canonical, given))


def make(wanted: Wanted) -> Made:
    """Make the mount; requests wait until a process serves it.

    SIGINT and SIGTERM are held from mount(2) on, so that none comes before the caller's block that
    undoes the mount. The caller releases them there.

    Raises:
        OptionError: the directories do not fit together.
        OSError: a directory cannot be opened, or mount(2) has failed.
    """
    with ExitStack() as undo:
        source_fd = os.open(wanted.source, _DIRECTORY | os.O_NOFOLLOW)
        undo.callback(os.close, source_fd)
        # libmount compares the names in /etc/fstab, without symbolic links, with those of mounts.
        path = os.readlink(f"/proc/self/fd/{source_fd}")
        target = _check_target(wanted.mountpoint, path, source_fd)
        fsname = wanted.options.fsname if wanted.named else path
        options = msgspec.structs.replace(wanted.options, fsname=fsname)
        undo.callback(interrupts.release)
        interrupts.hold()
        fuse_fd = fuse_mount.mount(target, options)
        undo.callback(fuse_mount.unmount, target)
        undo.callback(os.close, fuse_fd)
        entry = mountinfo.at(os.fsencode(target))[-1]
        lock_fd = records.add(entry)
        undo.pop_all()
        return Made(wanted._replace(source=path), entry, fuse_fd, source_fd, lock_fd)


def _check_target(mountpoint: str, source: str, source_fd: int) -> Path:
    """Return the mount point without symbolic links; ask no file system about it.

    Raises:
        OSError: it cannot be opened, or the source is mounted there already.
        OptionError: it lies inside its source: a lookup there by the worker would wait for it.
    """
    fd = os.open(mountpoint, _DIRECTORY)
    try:
        target = os.readlink(f"/proc/self/fd/{fd}")
        uppermost = mountinfo.at(os.fsencode(target))[-1:]
        if any((m.fstype, m.source) == (FSTYPE, os.fsencode(source)) for m in uppermost):
            raise OSError(errno.EBUSY, f"{source} is mounted there already", target)
        if mountinfo.contains(mountinfo.read(), source_fd, fd):
            raise OptionError("mountpoint", target, "a directory outside of the source")
    except LookupError:
        raise OptionError(
            "source", source, "directories on mounted file systems", "one is being unmounted"
        ) from None
    finally:
        os.close(fd)
    return Path(target)
