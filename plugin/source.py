"""Opening the host's directory that a volume serves, after looking at what it is.

The same checks run when a volume is created and each time that it is mounted: a source may have
gone meanwhile, or have become something else. All of it blocks, for ever where the source lies on
a dead network file system, so callers run it in a thread that they can leave behind.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from passthrough import filehandles, mountinfo, syscalls
from passthrough.config import Config, InodeFileHandles, OptionError
from passthrough.decisions import decide
from passthrough.mount import FSTYPE
from plugin.errors import InvalidOption
from plugin.options import refused_source

REASONS = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "is not a directory",
    errno.ELOOP: "leads through too many symbolic links",
}

# What /proc holds as links (fd, cwd, root) leads out of the tree that the plugin sees.
RESOLVE = syscalls.RESOLVE_NO_MAGICLINKS


class Host(NamedTuple):
    """How the plugin sees the machine that it serves."""

    root: Path
    """Where *directory* is visible to the plugin."""
    directory: Path
    """The directory of the host that sources lie in, as users name it."""
    mount_dir: Path
    """Where the plugin mounts volumes; no volume may have it inside."""
    data_dir: Path
    """Where the plugin keeps its data; no volume may have it inside, or lie in it."""

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
            fd = self._opened(root, path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise self._explained(root, path, source, error) from error
        finally:
            os.close(root)
        try:
            self._check(source, fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def look_at(self, source: str, config: Config) -> None:
        """Refuse what `open` would, and a source that cannot be served as *config* demands.

        Raises:
            InvalidOption: says what is in the way.
        """
        fd = self.open(source)
        try:
            if config.inode_file_handles is InodeFileHandles.MANDATORY:
                decide(config, filehandles.without_handles(fd))
        except OptionError as error:
            raise InvalidOption(str(error)) from error
        finally:
            os.close(fd)

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

    def _opened(self, root: int, path: bytes, flags: int) -> int:
        """Open *path* below *root*, with symlinks as they are on the host, or not at all.

        Where the plugin sees all of the host's tree, they are resolved against its root. Where it
        sees a part, one that leads out of it would lead to some other place inside.
        """
        sees_all = not self.directory.parts[1:]
        within = syscalls.RESOLVE_IN_ROOT if sees_all else syscalls.RESOLVE_BENEATH
        return syscalls.openat2(root, path, flags, RESOLVE | within)

    def _explained(self, root: int, path: bytes, source: str, error: OSError) -> InvalidOption:
        """The refusal for what openat2(2) reported."""
        if error.errno == errno.EXDEV:
            return refused_source(
                source,
                f"leads out of {self.directory} through a symbolic link, as all absolute ones do",
                f"a path in {self.directory} that does not",
            )
        if error.errno == errno.ENOTDIR and self._is_symlink(root, path):
            return refused_source(source, "is a symbolic link")
        reason = REASONS.get(error.errno or 0, f"cannot be opened: {error.strerror}")
        return refused_source(source, reason)

    def _is_symlink(self, root: int, path: bytes) -> bool:
        try:
            fd = self._opened(root, path, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            return stat.S_ISLNK(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    def _check(self, source: str, fd: int) -> None:
        """Refuse what the plugin itself changes, or would make the file system wait for itself."""
        with _place(self.mount_dir) as mount_dir, _place(self.data_dir) as data_dir:
            try:
                mounts = mountinfo.read()
                if mountinfo.of(mounts, fd).fstype == FSTYPE:
                    raise refused_source(source, "lies in a volume of passfs itself")
                for outer, inner, reason in (
                    (fd, mount_dir, f"contains {self.mount_dir}, where volumes are mounted"),
                    (mount_dir, fd, f"lies in {self.mount_dir}, where volumes are mounted"),
                    (fd, data_dir, f"contains {self.data_dir}, where passfs keeps its data"),
                    (data_dir, fd, f"lies in {self.data_dir}, where passfs keeps its data"),
                ):
                    if mountinfo.contains(mounts, outer, inner):
                        raise refused_source(source, reason, "a directory that does not")
            except LookupError as error:
                reason = "lies on a file system that is being unmounted"
                raise refused_source(source, reason) from error


@contextmanager
def _place(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
