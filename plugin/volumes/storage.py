"""The directories of volumes that have no source of their own; nothing else is ever deleted.

    <data dir>/volumes/<directory>   the files of the volume
    <data dir>/removed/<directory>   the same, until the registry has forgotten a removed volume
    <data dir>/trash/<token>         what is to be deleted: moved there at once, deleted later

The volume's record says the name of its directory.

So what lies in the trash belongs to no volume, whatever moment the plugin was killed at. Deleting
works on the trash alone and cannot leave it. A subdirectory is never walked into: it is moved up
into the trash, to be emptied in its turn. So the depth of a tree does not matter, no path is ever
followed, and what is a mount refuses to be moved (rename(2): EBUSY or EXDEV) and stays.

All of it blocks. Every call opens the descriptors that it uses and keeps none, so that one which
is stuck in a thread of its own can be left behind without harm.

A volume's directory has the volume's name, which the plugin checks at Create: dockerd checks no
name of a plugin's volume, and cannot remove a volume called `a/../b`. Other verbs look any name up.
If two names differ in case alone and the file system ignores case, Create refuses the second one.
"""

import errno
import logging
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from passthrough.linux import mountinfo, syscalls
from plugin.errors import StorageFailed, VolumeInUse
from plugin.reserve import FULL, LastingReserve
from plugin.volume import VOLUMES, FileName, Record, directory_in

log = logging.getLogger(__name__)

# Only root looks into the data directory: a volume may hold setuid files of its users.
PRIVATE_MODE = 0o700
# As the root of a volume of Docker's local driver; a copy-up or the user may change it.
VOLUME_MODE = 0o755

# How often one directory in the trash is gone through again because files appeared in it or went
# meanwhile: its last user may still be at work. What is left then waits for the next purge.
PURGE_ATTEMPTS = 100
# On a full disk the trash cannot grow, until other files in it have been deleted.
CHANGED_MEANWHILE = (errno.ENOTEMPTY, errno.ENOENT, *FULL)


class Storage:
    """The volumes' own directories below *data_dir*, which belongs to this plugin alone."""

    def __init__(self, data_dir: Path, owner: tuple[int, int] = (0, 0)) -> None:
        self.owner = owner
        """The root of containers, as user and group of the host."""
        self._data_dir = data_dir
        self._known_as: Path | None = data_dir
        self._volumes = data_dir / VOLUMES
        self._removed = data_dir / "removed"
        self._trash = data_dir / "trash"
        self._reserve = LastingReserve(data_dir)

    def prepare(self) -> None:
        """Make what is missing of the data directory."""
        for directory in (self._data_dir, self._volumes, self._removed, self._trash):
            directory.mkdir(mode=PRIVATE_MODE, parents=True, exist_ok=True)

    def known_as(self, directory: Path | None) -> None:
        """Have messages name the data directory by its path on the host, None if it is unknown."""
        self._known_as = directory

    def told(self, volume: Record, inner: str = "") -> str:
        """Return how messages name the directory of *volume*, or the path *inner* in it."""
        if self._known_as is None:
            return f"{directory_in(Path(), volume) / inner} in the data directory"
        return str(directory_in(self._known_as, volume) / inner)

    def settle(self, records: Iterable[Record]) -> None:
        """Finish what a plugin that was killed has left half removed; before any other call.

        What belongs to one of *records*, which are all the volumes that have a directory, was to be
        removed and has not been: it gets its files back. The rest goes into the trash.

        Raises:
            OSError: the directory of what is being removed cannot be read.
        """
        owners = {record.directory: record.name for record in records}
        for entry in os.listdir(self._removed):
            name = owners.get(FileName(entry))
            try:
                if name is None:
                    self._move(self._removed, entry, self._trash, secrets.token_hex(8))
                else:
                    self._move(self._removed, entry, self._volumes, entry)
                    log.warning("volume %s: its removal was cut off; it is there again", name)
            except OSError as error:
                where, why = self._removed / entry, error.strerror
                log.warning("cannot move %s, which a killed plugin has left: %s", where, why)

    def path(self, volume: Record) -> Path:
        """Where the files of *volume* lie, whether or not they do."""
        return directory_in(self._data_dir, volume)

    def create(
        self,
        volume: Record,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        """Make the directory of a new volume, durably; an empty one left by a crash is taken.

        It belongs to root, with VOLUME_MODE, unless something else is given.

        Raises:
            StorageFailed: it cannot be made, or there are files in it already, which would be
                somebody's data.
        """
        with self._reported(volume), _opened(self._volumes) as volumes:
            try:
                os.mkdir(volume.directory, mode=PRIVATE_MODE, dir_fd=volumes)
            except FileExistsError:
                if volume.directory not in os.listdir(volumes):
                    raise StorageFailed(
                        f"{self.told(volume)} is the directory of another volume, because its file"
                        f" system ignores case; choose a name that is not {volume.name!r} in"
                        " other case"
                    ) from None
            try:
                self._furnish(volumes, volume, mode, uid, gid)
            except OSError:
                self.withdraw(volume)  # empty, and of this name
                raise
            os.fsync(volumes)

    def _furnish(
        self, volumes: int, volume: Record, mode: int | None, uid: int | None, gid: int | None
    ) -> None:
        """Give the directory of a new volume its owner and its mode."""
        with _opened_below(volumes, volume.directory) as directory:
            if os.listdir(directory):
                raise StorageFailed(
                    f"{self.told(volume)} already exists and is not empty; move it away to create a"
                    f" new volume {volume.name!r}"
                )
            os.fchown(directory, uid or 0, gid or 0)
            # After the owner, whose change would take the suid and sgid bits away.
            os.fchmod(directory, VOLUME_MODE if mode is None else mode)

    def open(self, volume: Record) -> int:
        """Open the directory of *volume*; it is never made again if it is gone.

        Returns:
            An O_PATH descriptor that the caller owns.

        Raises:
            StorageFailed: says what is wrong with the directory.
        """
        with self._reported(volume), _opened(self._volumes) as volumes:
            return syscalls.openat2(
                volumes,
                os.fsencode(volume.directory),
                os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW,
                syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS,
            )

    def set_aside(self, volume: Record) -> None:
        """Take the directory of *volume* away, durably, if there is one; `restore` brings it back.

        Raises:
            VolumeInUse: something is mounted in it.
            StorageFailed: it cannot be moved.
        """
        with self._reported(volume), suppress(FileNotFoundError):
            self._refuse_mounts(volume)
            try:
                self._move(self._volumes, volume.directory, self._removed, volume.directory)
            except FileExistsError:  # of an older volume of this name, which could not be discarded
                self.discard(volume)
                self._move(self._volumes, volume.directory, self._removed, volume.directory)

    def withdraw(self, volume: Record) -> None:
        """Undo `create`: remove the directory of *volume*, unless it has files by now."""
        with suppress(OSError):
            self.path(volume).rmdir()

    def restore(self, volume: Record) -> None:
        """Undo `set_aside`.

        Raises:
            StorageFailed: it stays aside.
        """
        with self._reported(volume), suppress(FileNotFoundError):
            self._move(self._removed, volume.directory, self._volumes, volume.directory)

    def discard(self, volume: Record) -> None:
        """Put into the trash what has been set aside of *volume*, which no volume has any more.

        Raises:
            StorageFailed: it stays aside, until the next start.
        """
        with self._reported(volume), suppress(FileNotFoundError):
            self._move(self._removed, volume.directory, self._trash, secrets.token_hex(8))

    def purge(self) -> None:
        """Delete all that is in the trash; what cannot be deleted stays there and is logged.

        Raises:
            OSError: the trash itself cannot be read.
        """
        with _opened(self._trash) as trash:
            attempts: Counter[str] = Counter()
            stuck: set[str] = set()
            while entries := [entry for entry in os.listdir(trash) if entry not in stuck]:
                for entry in entries:
                    attempts[entry] += 1
                    try:
                        _empty(trash, entry)
                        os.rmdir(entry, dir_fd=trash)
                    except OSError as error:
                        if error.errno in CHANGED_MEANWHILE and attempts[entry] < PURGE_ATTEMPTS:
                            continue
                        stuck.add(entry)
                        where, why = self._trash / entry, error.strerror
                        log.warning("cannot delete all of %s: %s", where, why)

    def _refuse_mounts(self, volume: Record) -> None:
        # mountinfo has no symlinks in its paths, and the data directory may be behind one.
        path = os.fsencode(self._volumes.resolve() / volume.directory)
        for mount in mountinfo.read():
            if mountinfo.is_below(mount.target, path):
                inner = os.fsdecode(os.path.relpath(mount.target, path))
                raise VolumeInUse(
                    f"volume {volume.name!r} cannot be removed: {self.told(volume, inner)} is a"
                    " mount point inside it; unmount that first"
                )

    def _move(self, old_dir: Path, old: str, new_dir: Path, new: str) -> None:
        with _opened(old_dir) as source, _opened(new_dir) as target:
            names = (source, os.fsencode(old), target, os.fsencode(new))
            move = partial(syscalls.renameat2, *names, syscalls.RENAME_NOREPLACE)
            self._reserve.run(move)  # *new_dir* may have to grow
            os.fsync(target)
            os.fsync(source)

    @contextmanager
    def _reported(self, volume: Record) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageFailed(
                f"cannot use {self.told(volume)}, which holds the files of volume {volume.name!r}:"
                f" {error.strerror}"
            ) from error


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _opened_below(parent: int, name: str) -> Iterator[int]:
    """Open the directory *name* in *parent* for reading, unless it is a symlink or a mount."""
    fd = syscalls.openat2(
        parent,
        os.fsencode(name),
        os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW,
        syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV,
    )
    try:
        yield fd
    finally:
        os.close(fd)


def _empty(trash: int, entry: str) -> None:
    """Unlink the files in *entry* and move its subdirectories up beside it."""
    with _opened_below(trash, entry) as directory, os.scandir(directory) as children:
        for child in children:
            with suppress(FileNotFoundError):  # its last user may delete as well
                if child.is_dir(follow_symlinks=False):
                    token = secrets.token_hex(8)
                    os.rename(child.name, token, src_dir_fd=directory, dst_dir_fd=trash)
                else:
                    os.unlink(child.name, dir_fd=directory)
