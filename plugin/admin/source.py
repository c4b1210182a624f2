"""Opens the host directory that a volume serves, and refuses directories that cannot be a source.

The same checks run at Create and at each Mount: a source may be removed or replaced in between. All
functions block, for ever if the source is on a dead network file system. Callers therefore run them
in a thread that they can abandon.

The path that the kernel reports for the opened descriptor decides whether a source is allowed, so
no symlink leads around an allowed directory. The plugin opens allowed directories without following
symlinks. Otherwise a user with write access above an allowed directory could make it allow every
source. If the kernel's path walk fails inside an allowed directory, the refusal has the reason. All
other refusals have the same sentence, after the same checks.
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
from passthrough.options.owner import with_source
from passthrough.options.table import OptionError
from plugin.admin import network, new_directory
from plugin.errors import InvalidOption
from plugin.volume_options import refused_source

REASONS = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "is not a directory",
    errno.ELOOP: "leads through too many symbolic links",
}

# The links in /proc (fd, cwd, root) lead out of the tree that the plugin sees.
RESOLVE_FLAGS = syscalls.RESOLVE_NO_MAGICLINKS
# O_DIRECTORY is required: with O_PATH, only O_DIRECTORY triggers an automount at the last name.
DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW


class HostView(NamedTuple):
    """The plugin's view of its host, and the directories that sources may lie in."""

    root: Path
    """The path at which the plugin sees *directory*."""
    directory: Path
    """The directory of the host that sources may lie in, by the name that users know."""
    mount_dir: Path
    """The directory of mount points; no source may contain it, or lie in it."""
    data_dir: Path
    """The data directory; no source may contain it, or lie in it."""
    allowed: tuple[Path, ...] = ()
    """The allowed directories, by the names that users know; empty allows all of *directory*."""

    def open(
        self, source: str, options: Effective, on_note: Callable[[str], object] | None = None
    ) -> int:
        """Open the directory *source*, as users name it, for a volume with the options *options*.

        Calls *on_note* with the note about the source for Status; the note may be empty.

        Returns:
            An O_PATH descriptor that the caller owns.

        Raises:
            InvalidOption: the directory does not exist, or cannot be the source of the volume.
        """
        fd = self._open_served(source, options.subpath)
        try:
            note = self._check_directory(source, options, fd)
            if on_note is not None:
                on_note(note)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def check(self, source: str, options: Effective) -> str:
        """Check *source* as `open` does, and the file handles that *options* may require.

        Returns:
            The note about the source for Status; it may be empty.

        Raises:
            InvalidOption: has the reason.
        """
        notes: list[str] = []
        fd = self.open(source, options, notes.append)
        try:
            if options.inode_file_handles is InodeFileHandles.MANDATORY:
                require_file_handles(options, filehandles.obstacle(fd))
        except OptionError as error:
            raise InvalidOption(str(error)) from error
        finally:
            os.close(fd)
        return "".join(notes)

    @contextmanager
    def made(self, source: str, options: Effective, owner: tuple[int, int]) -> Iterator[None]:
        """Make the directory that a volume serves, if it is missing and *options* ask for that.

        Its parent must exist, and lie in an allowed directory. If the body fails, the directory is
        removed again, unless it has files by then, or another program has replaced it.

        Raises:
            InvalidOption: has the reason.
        """
        if not options.create or self._exists(source, options.subpath):
            yield
            return
        with self._opened_parent(source, options.subpath) as (parent, name):
            with _explained(source):
                self._check_allowed(source, parent)
                self._check_apart(source, parent, mountinfo.read(), is_parent=True)
            try:
                made = new_directory.make(parent, name, options.mode, owner)
            except OSError as error:
                reason = f"cannot be made: {error.strerror}"
                accepted = "a path at which the plugin can make a directory"
                raise refused_source(source, reason, accepted) from error
            try:
                yield
            except BaseException:
                if made is not None:
                    made.remove(parent, name)
                raise

    def _exists(self, source: str, subpath: str | None) -> bool:
        """Return whether the directory to serve exists; refuse it if it cannot be opened."""
        try:
            os.close(self._open_served(source, subpath))
        except InvalidOption as refusal:
            if not isinstance(refusal.__cause__, FileNotFoundError):
                raise
            return False
        return True

    @contextmanager
    def _opened_parent(self, source: str, subpath: str | None) -> Iterator[tuple[int, str]]:
        """Open the directory that has the one to serve; yield it, and the name in it."""
        flags = os.O_RDONLY | os.O_DIRECTORY  # for fsync(2), which O_PATH does not allow
        if subpath is None:
            above, name = os.path.split("/" + "/".join(_names(source)))
            fd = self._open_source(above, flags)
        else:
            above, name = os.path.split(subpath)
            fd = self._open_source(source, flags | os.O_NOFOLLOW)
            if above:
                fd = self._descend(source, fd, above, flags)
        try:
            yield fd, name
        finally:
            os.close(fd)

    def _open_served(self, source: str, subpath: str | None) -> int:
        """Open the directory to serve, and check nothing."""
        fd = self._open_source(source, DIRECTORY_FLAGS)
        return fd if subpath is None else self._descend(source, fd, subpath)

    def _open_source(self, source: str, flags: int) -> int:
        """Open *source*, and check nothing."""
        path = os.fsencode(self._below_root(source))
        with _opened(self.root) as root:
            try:
                return self._open_below(root, path, flags)
            except OSError as error:
                if not self._fails_inside_allowed(source, error):
                    self._check_allowed(source, None)
                raise self._refusal(root, path, source, error) from error

    def _descend(
        self, source: str, fd: int, subpath: str, flags: int = os.O_PATH | os.O_DIRECTORY
    ) -> int:
        """Open *subpath* below the source *fd*, which the function closes; links may not lead out.

        The kernel resolves the path in one call, so that no rename meanwhile leads out either.
        """
        try:
            resolve = RESOLVE_FLAGS | syscalls.RESOLVE_BENEATH
            return syscalls.openat2(fd, os.fsencode(subpath), flags, resolve)
        except OSError as error:
            self._check_allowed(source, fd)
            reason = REASONS.get(error.errno or 0, f"cannot be opened: {error.strerror}")
            if error.errno == errno.EXDEV:
                reason = "leads out of the source through a symbolic link"
            accepted = f"the path of a directory in {source!r}"
            raise refused_source(subpath, reason, accepted, "subpath") from error
        finally:
            os.close(fd)

    def _below_root(self, source: str) -> str:
        """Return *source* as a path relative to the root."""
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

    def _open_below(self, root: int, path: bytes, flags: int, resolve: int = RESOLVE_FLAGS) -> int:
        """Open *path* below *root*; symlinks lead to the same directory as on the host, or fail.

        If the plugin sees all of the host's tree, the kernel resolves symlinks against the root of
        the tree. If the plugin sees a part, a symlink out of this part fails with EXDEV: resolved
        inside, the symlink would lead to another directory than on the host.
        """
        sees_all = not self.directory.parts[1:]
        within = syscalls.RESOLVE_IN_ROOT if sees_all else syscalls.RESOLVE_BENEATH
        return syscalls.openat2(root, path, flags, resolve | within)

    def _refusal(self, root: int, path: bytes, source: str, error: OSError) -> InvalidOption:
        """Return the refusal for an error of openat2(2)."""
        if error.errno == errno.EXDEV:
            return refused_source(
                source,
                f"leads out of {self.directory} through a symbolic link; every absolute link does",
                f"a path in {self.directory} that does not",
            )
        if error.errno == errno.ENOTDIR and self._is_symlink(root, path):
            return refused_source(source, "is a symbolic link")
        reason = REASONS.get(error.errno or 0, f"cannot be opened: {error.strerror}")
        return refused_source(source, reason)

    def _is_symlink(self, root: int, path: bytes) -> bool:
        try:
            fd = self._open_below(root, path, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            return stat.S_ISLNK(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    def _check_directory(self, source: str, options: Effective, fd: int) -> str:
        """Refuse an opened directory that must not be served, or not with these options.

        Returns:
            The note about the source for Status; it may be empty.
        """
        self._check_allowed(source, fd)
        with _explained(source):
            mounts = mountinfo.read()
            self._check_apart(source, fd, mounts)
            network.check(source, options, fd, mounts)
            if options.owner is not None:
                found = os.fstat(fd)  # a file system that refuses root may refuse this
                with_source(options.requested, found.st_uid, found.st_gid)
            return "" if mountinfo.of(mounts, fd).follows else self._private_note()

    def _fails_inside_allowed(self, source: str, error: OSError) -> bool:
        """Return whether *source* fails with *error* inside an allowed directory.

        A user with access to a part of the host learns nothing of files elsewhere: a walk that
        would leave the allowed directory ends with EXDEV.
        """
        for directory in self._allowed_above(source):
            try:
                with self._opened_allowed(directory) as allowed:
                    path = os.path.relpath("/".join(_names(source)), str(directory)[1:] or ".")
                    resolve = RESOLVE_FLAGS | syscalls.RESOLVE_BENEATH
                    os.close(syscalls.openat2(allowed, os.fsencode(path), DIRECTORY_FLAGS, resolve))
            except OSError as found:
                if found.errno == error.errno != errno.EXDEV:
                    return True
        return False

    def _allowed_above(self, source: str) -> list[Path]:
        """Return the allowed directories that are a prefix of the path *source*."""
        named = Path("/", *_names(source))
        return [directory for directory in self.allowed if named.is_relative_to(directory)]

    def _check_allowed(self, source: str, fd: int | None) -> None:
        """Refuse a source in no allowed directory, by its real path and not by its name.

        *fd* is None if the source could not be opened: the refusal has the same sentence.
        """
        path, accepted = None if fd is None else _path(fd), []
        above = self._allowed_above(source)
        # The directories above the source come first, because others may be on a dead network file
        # system.
        for directory in sorted(self.allowed, key=lambda directory: directory not in above):
            try:
                if self._is_below(path, directory):
                    return
                accepted.append(str(directory))
            except OSError as error:
                is_link = error.errno == errno.ELOOP
                reason = "a symbolic link is part of it" if is_link else error.strerror
                accepted.append(f"{directory} (which allows nothing: {reason})")
        if accepted:
            reason = "lies in none of the directories that the administrator of this plugin allows"
            raise refused_source(source, reason, f"a directory in {', '.join(accepted)}")

    def _is_below(self, path: bytes | None, directory: Path) -> bool:
        """Return whether *path*, if not None, lies in the allowed *directory*."""
        with self._opened_allowed(directory) as allowed:
            return path is not None and mountinfo.is_below(path, _path(allowed))

    @contextmanager
    def _opened_allowed(self, directory: Path) -> Iterator[int]:
        """Open the allowed *directory* without following symlinks.

        Otherwise a user with write access above it, in a volume or on the host, could make it
        allow every source.
        """
        name = os.fsencode("/".join(directory.parts[len(self.directory.parts) :]) or ".")
        with _opened(self.root) as root:
            resolve = RESOLVE_FLAGS | syscalls.RESOLVE_NO_SYMLINKS
            allowed = self._open_below(root, name, os.O_PATH | os.O_DIRECTORY, resolve)
        try:
            yield allowed
        finally:
            os.close(allowed)

    def _check_apart(
        self,
        source: str,
        fd: int,
        mounts: Sequence[mountinfo.MountEntry],
        *,
        is_parent: bool = False,
    ) -> None:
        """Refuse directories that the plugin changes, or that make a volume wait for itself.

        If *fd* is the parent of a directory to make, it may contain them.
        """
        if mountinfo.of(mounts, fd).fstype == FSTYPE:
            raise refused_source(source, "lies in a volume of passfs itself")
        volumes = f"{self._own_name(self.mount_dir)}, where volumes are mounted"
        data = f"{self._own_name(self.data_dir)}, where passfs keeps its data"
        with _opened(self.mount_dir) as mount_dir, _opened(self.data_dir) as data_dir:
            for outer, inner, reason in (
                (fd, mount_dir, f"contains {volumes}"),
                (mount_dir, fd, f"lies in {volumes}"),
                (fd, data_dir, f"contains {data}"),
                (data_dir, fd, f"lies in {data}"),
            ):
                if is_parent and outer == fd:
                    continue
                if mountinfo.contains(mounts, outer, inner):
                    raise refused_source(source, reason, "a directory that does not")

    def _own_name(self, directory: Path) -> str:
        """Return the host's name of a directory of the plugin, or a description."""
        return str(directory) if self._sees_as_the_host() else "a directory of passfs itself"

    def _private_note(self) -> str:
        """Return the note for a source on a private mount."""
        until = "the volume is mounted again" if self._sees_as_the_host() else "passfs starts again"
        return (
            "the source's mount is private on the host, so the volume does not show disks that the"
            f" host mounts on or below the source later, until {until}; before passfs starts, run"
            " mount --make-rshared on the host"
        )

    def _sees_as_the_host(self) -> bool:
        return self.root == self.directory


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn an error of the body into the refusal of *source*."""
    try:
        yield
    except OptionError as error:
        raise InvalidOption(str(error)) from error
    except LookupError as error:
        raise refused_source(source, "lies on a file system that is being unmounted") from error
    except OSError as error:  # the server of the file system is gone
        raise refused_source(source, f"cannot be checked: {error.strerror}") from error


def _names(source: str) -> list[str]:
    """Return the names in the path *source*."""
    return [name for name in source.split("/") if name not in {"", "."}]


def _path(fd: int) -> bytes:
    """Return the path of the directory *fd*, without symlinks."""
    return os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
