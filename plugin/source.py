"""Opening the host's directory that a volume serves, after looking at what it is.

The same checks run when a volume is created and each time that it is mounted: a source may have
gone meanwhile, or have become something else. All of it blocks, for ever where the source lies on
a dead network file system, so callers run it in a thread that they can leave behind.
"""

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

from passthrough import mountinfo, syscalls
from passthrough.mount import FSTYPE
from plugin.errors import InvalidOption
from plugin.options import refused_source

REASONS = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "is not a directory",
    errno.ELOOP: "leads through too many symbolic links",
}

# The plugin sees the host's tree at host_root: a symlink there means what it means on the host, so
# it is resolved against that root. What /proc holds as links (fd, cwd, root) would lead out of it.
RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS


class Host(NamedTuple):
    """How the plugin sees the machine that it serves."""

    root: Path
    """Where *directory* is visible to the plugin."""
    directory: Path
    """The directory of the host that sources lie in, as users name it."""
    mount_dir: Path
    """Where the plugin mounts volumes; no volume may have it inside."""

    def open(self, source: str) -> int:
        """Open the directory that users know as *source*.

        Returns:
            An O_PATH descriptor that the caller owns.

        Raises:
            InvalidOption: there is no such directory, or it cannot be the source of a volume.
        """
        path = os.fsencode(self._below_root(source))
        root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # O_DIRECTORY on purpose: with O_PATH, only that sets off an automount at the last name.
            fd = syscalls.openat2(root, path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, RESOLVE)
        except OSError as error:
            raise _explained(root, path, source, error) from error
        finally:
            os.close(root)
        try:
            self._check(source, fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _below_root(self, source: str) -> str:
        """*source* as a path relative to the root."""
        names = [name for name in source.split("/") if name not in {"", "."}]
        above = self.directory.parts[1:]
        if tuple(names[: len(above)]) != above:
            raise refused_source(
                source,
                f"does not lie in {self.directory}, which is all that the plugin sees of the host",
                f"a directory in {self.directory}",
            )
        return "/".join(names[len(above) :]) or "."

    def _check(self, source: str, fd: int) -> None:
        """Refuse what would make the file system wait for itself."""
        mount_dir = os.open(self.mount_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mounts = mountinfo.read()
            if mountinfo.of(mounts, fd).fstype == FSTYPE:
                raise refused_source(source, "lies in a volume of passfs itself")
            if mountinfo.contains(mounts, fd, mount_dir):
                raise refused_source(
                    source,
                    f"contains {self.mount_dir}, where volumes are mounted",
                    "a directory that does not",
                )
        except LookupError as error:
            raise refused_source(source, "lies on a file system that is being unmounted") from error
        finally:
            os.close(mount_dir)


def _explained(root: int, path: bytes, source: str, error: OSError) -> InvalidOption:
    """The refusal for what openat2(2) reported."""
    if error.errno == errno.ENOTDIR and _is_symlink(root, path):
        return refused_source(source, "is a symbolic link")
    reason = REASONS.get(error.errno or 0, f"cannot be opened: {error.strerror}")
    return refused_source(source, reason)


def _is_symlink(root: int, path: bytes) -> bool:
    try:
        fd = syscalls.openat2(root, path, os.O_PATH | os.O_NOFOLLOW, RESOLVE)
    except OSError:
        return False
    try:
        return stat.S_ISLNK(os.fstat(fd).st_mode)
    finally:
        os.close(fd)
