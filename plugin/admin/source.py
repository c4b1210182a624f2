"""Opening the host's directory that a volume serves, after looking at what it is.

The same checks run when a volume is created and each time that it is mounted: a source may have
gone meanwhile, or have become something else. All of it blocks, for ever where the source lies on
a dead network file system, so callers run it in a thread that they can leave behind.

A source is allowed by the path that the kernel gives to its opened descriptor, so no symlink leads
around an allowed directory. Allowed directories are opened without following symlinks: a user that
may write above one could otherwise have it allow anything. A refusal gives the reason only if the
walk fails inside an allowed directory; all others get one sentence, after the same checks.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from passthrough.linux import filehandles, mountinfo, syscalls
from passthrough.linux.mountinfo import FSTYPE
from passthrough.options.choices import InodeFileHandles
from passthrough.options.effective import Effective, require_file_handles
from passthrough.options.table import OptionError
from plugin.admin import network
from plugin.errors import InvalidOption
from plugin.options import refused_source

REASONS = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "is not a directory",
    errno.ELOOP: "leads through too many symbolic links",
}

# What /proc holds as links (fd, cwd, root) leads out of the tree that the plugin sees.
RESOLVE = syscalls.RESOLVE_NO_MAGICLINKS
# O_DIRECTORY on purpose: with O_PATH, only that sets off an automount at the end.
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW


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
    allowed: tuple[Path, ...] = ()
    """The directories that sources lie in, as users name them; none for all of *directory*."""

    def open(self, source: str, config: Effective, note: Callable[[str], object] = str) -> int:
        """Open the directory that users know as *source*, to be served as *config* says.

        Calls *note* with what Status is to say of the source, which may be nothing.

        Returns:
            An O_PATH descriptor that the caller owns.

        Raises:
            InvalidOption: there is no such directory, or it cannot be the source of the volume.
        """
        path = os.fsencode(self._below_root(source))
        with _place(self.root) as root:
            try:
                fd = self._opened(root, path, DIRECTORY)
            except OSError as error:
                if not self._fails_where_allowed(source, error):
                    self._check_allowed(source, None)
                raise self._explained(root, path, source, error) from error
        try:
            note(self._check(source, config, fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def look_at(self, source: str, config: Effective) -> str:
        """Refuse what `open` would, and a source that cannot be served as *config* demands.

        Returns:
            What Status is to say of the source, which may be nothing.

        Raises:
            InvalidOption: says what is in the way.
        """
        notes: list[str] = []
        fd = self.open(source, config, notes.append)
        try:
            if config.inode_file_handles is InodeFileHandles.MANDATORY:
                require_file_handles(config, filehandles.obstacle(fd))
        except OptionError as error:
            raise InvalidOption(str(error)) from error
        finally:
            os.close(fd)
        return "".join(notes)

    def _below_root(self, source: str) -> str:
        """*source* as a path relative to the root."""
        names = _names(source)
        above = self.directory.parts[1:]
        if tuple(names[: len(above)]) != above:
            self._check_allowed(source, None)
            raise refused_source(
                source,
                f"does not lie in {self.directory}, which is all that the plugin sees of the host",
                f"a directory in {self.directory}",
            )
        return "/".join(names[len(above) :]) or "."

    def _opened(self, root: int, path: bytes, flags: int, resolve: int = RESOLVE) -> int:
        """Open *path* below *root*, with symlinks as they are on the host, or not at all.

        Where the plugin sees all of the host's tree, they are resolved against its root. Where it
        sees a part, one that leads out of it would lead to some other place inside.
        """
        sees_all = not self.directory.parts[1:]
        within = syscalls.RESOLVE_IN_ROOT if sees_all else syscalls.RESOLVE_BENEATH
        return syscalls.openat2(root, path, flags, resolve | within)

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

    def _check(self, source: str, config: Effective, fd: int) -> str:
        """Refuse a directory that is there, and must not be served, or not in this way.

        Returns:
            What Status is to say of the source, which may be nothing.
        """
        self._check_allowed(source, fd)
        try:
            mounts = mountinfo.read()
            self._check_apart(source, fd, mounts)
            network.check(source, config, fd, mounts)
            return "" if mountinfo.of(mounts, fd).follows else self._unseen()
        except OptionError as error:
            raise InvalidOption(str(error)) from error
        except LookupError as error:
            reason = "lies on a file system that is being unmounted"
            raise refused_source(source, reason) from error
        except OSError as error:  # of a file system whose server has gone
            raise refused_source(source, f"cannot be looked at: {error.strerror}") from error

    def _fails_where_allowed(self, source: str, error: OSError) -> bool:
        """Return whether *source* fails with *error* inside a directory that sources may lie in.

        A user with less than the whole host learns nothing of what exists elsewhere: a walk that
        would leave the allowed directory ends there, with EXDEV.
        """
        for directory in self._nearest(source):
            try:
                with self._allowed_place(directory) as allowed:
                    path = os.path.relpath("/".join(_names(source)), str(directory)[1:] or ".")
                    resolve = RESOLVE | syscalls.RESOLVE_BENEATH
                    os.close(syscalls.openat2(allowed, os.fsencode(path), DIRECTORY, resolve))
            except OSError as found:
                if found.errno == error.errno != errno.EXDEV:
                    return True
        return False

    def _nearest(self, source: str) -> list[Path]:
        """Return the allowed directories that the text *source* points into."""
        named = Path("/", *_names(source))
        return [directory for directory in self.allowed if named.is_relative_to(directory)]

    def _check_allowed(self, source: str, fd: int | None) -> None:
        """Refuse what lies in no allowed directory: where it is, whichever way has led to it.

        None stands for a source that could not be opened: it gets the same sentence.
        """
        path, accepted = None if fd is None else _path(fd), []
        nearest = self._nearest(source)
        # Another one may lie on a dead network file system: first those that the name points to.
        for directory in sorted(self.allowed, key=lambda one: one not in nearest):
            try:
                if self._is_below(path, directory):
                    return
                accepted.append(str(directory))
            except OSError as error:
                is_link = error.errno == errno.ELOOP
                why = "a symbolic link is part of it" if is_link else error.strerror
                accepted.append(f"{directory} (which allows nothing: {why})")
        if accepted:
            reason = "lies in none of the directories that the administrator of this plugin allows"
            raise refused_source(source, reason, f"a directory in {', '.join(accepted)}")

    def _is_below(self, path: bytes | None, directory: Path) -> bool:
        """Return whether *path*, if there is one, lies in the allowed *directory*."""
        with self._allowed_place(directory) as allowed:
            return path is not None and mountinfo.is_below(path, _path(allowed))

    @contextmanager
    def _allowed_place(self, directory: Path) -> Iterator[int]:
        """Open *directory*, a name without symlinks.

        With them, a user who may write above it, in a volume or on the host, could have it allow
        anything.
        """
        name = os.fsencode("/".join(directory.parts[len(self.directory.parts) :]) or ".")
        with _place(self.root) as root:
            resolve = RESOLVE | syscalls.RESOLVE_NO_SYMLINKS
            allowed = self._opened(root, name, os.O_PATH | os.O_DIRECTORY, resolve)
        try:
            yield allowed
        finally:
            os.close(allowed)

    def _check_apart(self, source: str, fd: int, mounts: Sequence[mountinfo.MountEntry]) -> None:
        """Refuse what the plugin itself changes, or would make the file system wait for itself."""
        if mountinfo.of(mounts, fd).fstype == FSTYPE:
            raise refused_source(source, "lies in a volume of passfs itself")
        volumes = f"{self._own(self.mount_dir)}, where volumes are mounted"
        data = f"{self._own(self.data_dir)}, where passfs keeps its data"
        with _place(self.mount_dir) as mount_dir, _place(self.data_dir) as data_dir:
            for outer, inner, reason in (
                (fd, mount_dir, f"contains {volumes}"),
                (mount_dir, fd, f"lies in {volumes}"),
                (fd, data_dir, f"contains {data}"),
                (data_dir, fd, f"lies in {data}"),
            ):
                if mountinfo.contains(mounts, outer, inner):
                    raise refused_source(source, reason, "a directory that does not")

    def _own(self, directory: Path) -> str:
        """Return a directory of the plugin's own as the host knows it, or in words."""
        return str(directory) if self._sees_as_the_host() else "a directory of passfs itself"

    def _unseen(self) -> str:
        """Return the note for a source on a mount that follows no other."""
        until = "the volume is mounted anew" if self._sees_as_the_host() else "passfs starts again"
        return (
            "disks that the host mounts on or below the source from now on are not seen until"
            f" {until}, because its mount is private; mount --make-rshared on the host, before"
            " passfs starts, has them seen"
        )

    def _sees_as_the_host(self) -> bool:
        return self.root == self.directory


def _names(source: str) -> list[str]:
    """Return the names on the way to *source* from the root."""
    return [name for name in source.split("/") if name not in {"", "."}]


def _path(fd: int) -> bytes:
    """Where the directory behind *fd* is, with no symlink in it."""
    return os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))


@contextmanager
def _place(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
