"""The directories of volumes without a source, and their deletion; no other file is ever deleted.

    <data dir>/volumes/<directory>   the files of a volume
    <data dir>/removed/<directory>   the files of a volume that is being removed, until the registry
                                     has forgotten the volume
    <data dir>/trash/<token>         files to delete

Files in the trash belong to no volume, also after the plugin was killed at any step. The deletion
works in the trash only and cannot leave it. It does not descend: it moves each subdirectory up into
the trash, and empties it there later. So a tree may have any depth, no path is followed, and a
mount stays, because rename(2) refuses to move a mount point (EBUSY or EXDEV).

All functions block. Each opens the descriptors that it uses and keeps none, so that a thread that
hangs in one can be left behind.

A volume's record has the name of its directory. The directory of a new volume has the volume's
name. In an upgraded registry it may have an encoded name (old_names.py). Create checks the name of
a volume, because dockerd checks no name of a plugin's volume, and cannot remove a volume called
`a/../b`. Other verbs accept any name. If two names differ in case only and the file system ignores
case, Create refuses the second one.
"""

import errno
import logging
import os
import secrets
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from passthrough.linux import mountinfo, syscalls
from plugin.errors import StorageFailed, VolumeInUse
from plugin.reserve import FULL, LastingReserve
from plugin.volume import VOLUMES, FileName, Record, directory_in

log = logging.getLogger(__name__)

# The data directory is for root only: a volume may hold setuid files of its users.
PRIVATE_MODE = 0o700
# Docker's local driver gives the root of a volume the same mode. The engine's copy of an image's
# content into the volume may change it, and so may the user.
VOLUME_MODE = 0o755

# Attempts to delete one directory in the trash: a process that still has it open may create and
# delete files in it. After the last attempt the directory waits for the next purge.
PURGE_ATTEMPTS = 100
# Errors that may be gone at the next attempt. On a full disk the trash cannot take a subdirectory
# until other files in it have been deleted.
RETRIED = (errno.ENOTEMPTY, errno.ENOENT, *FULL)


class Entries(NamedTuple):
    """The names in the data directory."""

    volumes: frozenset[str]
    removed: frozenset[str]
    trash: frozenset[str]


class Storage:
    """The volumes' own directories below *data_dir*, which no other plugin uses."""

    def __init__(self, data_dir: Path, owner: tuple[int, int] = (0, 0)) -> None:
        self.owner = owner
        """The containers' root, as user and group of the host."""
        self._data_dir = data_dir
        self._host_path: Path | None = data_dir
        self._volumes = data_dir / VOLUMES
        self._removed = data_dir / "removed"
        self._trash = data_dir / "trash"
        self._reserve = LastingReserve(data_dir)

    def prepare(self) -> None:
        """Make the data directory and its subdirectories, as far as they are missing."""
        for directory in (self._data_dir, self._volumes, self._removed, self._trash):
            directory.mkdir(mode=PRIVATE_MODE, parents=True, exist_ok=True)

    def set_host_path(self, directory: Path | None) -> None:
        """Set the path of the data directory on the host, for messages; None if it is unknown."""
        self._host_path = directory

    def shown_path(self, record: Record, inner: str = "") -> str:
        """Return the path of the directory of *record*, or of *inner* in it, for a message."""
        if self._host_path is None:
            return f"{directory_in(Path(), record) / inner} in the data directory"
        return str(directory_in(self._host_path, record) / inner)

    def shown(self, directory: str) -> str:
        """Return the path of the *directory* of a volume, for a message."""
        above = self._host_path or Path("the data directory")
        return str(above / VOLUMES / directory)

    def entries(self) -> Entries:
        """List the directories of volumes, those of removed ones, and the trash.

        Raises:
            OSError: one cannot be read.
        """
        places = (self._volumes, self._removed, self._trash)
        return Entries(*(frozenset(os.listdir(place)) for place in places))

    def settle(self, records: Iterable[Record]) -> None:
        """Finish or undo the removals that a killed plugin left half done; before any other call.

        *records* are all volumes that have a directory. If the registry still has the volume, its
        removal is undone, and its files are moved back. Other files are moved into the trash.

        Raises:
            OSError: the directory of removed volumes cannot be read.
        """
        owners = {record.directory: record.name for record in records}
        for entry in os.listdir(self._removed):
            name = owners.get(FileName(entry))
            try:
                if name is None:
                    self._move(self._removed, entry, self._trash, secrets.token_hex(8))
                else:
                    self._move(self._removed, entry, self._volumes, entry)
                    log.warning("volume %s: its removal was interrupted, and has been undone", name)
            except OSError as error:
                where, why = self._removed / entry, error.strerror
                log.warning("cannot move %s, which a killed plugin left: %s", where, why)

    def path(self, record: Record) -> Path:
        """Return the path of the directory of *record*, which need not exist."""
        return directory_in(self._data_dir, record)

    def create(
        self,
        record: Record,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        """Make the directory of a new volume; on return it survives a power cut.

        An empty directory that a crash has left is used. The defaults are VOLUME_MODE and root.

        Raises:
            StorageFailed: the directory cannot be made, or has files already. These may be a user's
                data.
        """
        with self._reported(record), _opened(self._volumes) as volumes:
            try:
                os.mkdir(record.directory, mode=PRIVATE_MODE, dir_fd=volumes)
            except FileExistsError:
                if record.directory not in os.listdir(volumes):
                    raise StorageFailed(
                        f"{self.shown_path(record)} is the directory of another volume, because"
                        " its file system ignores case; choose a name that differs from that"
                        " volume's name in more than upper and lower case"
                    ) from None
            try:
                self._furnish(volumes, record, mode, uid, gid)
            except OSError:
                self.withdraw(record)
                raise
            os.fsync(volumes)

    def _furnish(
        self, volumes: int, record: Record, mode: int | None, uid: int | None, gid: int | None
    ) -> None:
        """Give the directory of a new volume its owner and its mode."""
        with _opened_below(volumes, record.directory) as directory:
            if os.listdir(directory):
                raise StorageFailed(
                    f"{self.shown_path(record)} already exists and is not empty; move it away to"
                    f" create a new volume {record.name!r}"
                )
            os.fchown(directory, uid or 0, gid or 0)
            # After fchown(2), which clears the suid and sgid bits.
            os.fchmod(directory, VOLUME_MODE if mode is None else mode)
            os.fsync(directory)

    def open(self, record: Record) -> int:
        """Open the directory of *record*; a missing directory is not made again.

        Returns:
            An O_PATH descriptor that the caller owns.

        Raises:
            StorageFailed: the directory is missing or cannot be opened.
        """
        with self._reported(record), _opened(self._volumes) as volumes:
            return syscalls.openat2(
                volumes,
                os.fsencode(record.directory),
                os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW,
                syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS,
            )

    def set_aside(self, record: Record) -> None:
        """Move the directory of *record*, if it exists, to the removed ones; `restore` undoes it.

        On return the move survives a power cut.

        Raises:
            VolumeInUse: something is mounted in it.
            StorageFailed: it cannot be moved.
        """
        with self._reported(record), suppress(FileNotFoundError):
            self._refuse_mounts(record)
            try:
                self._move(self._volumes, record.directory, self._removed, record.directory)
            except FileExistsError:  # of an older volume of this name that `discard` failed for
                self.discard(record)
                self._move(self._volumes, record.directory, self._removed, record.directory)

    def withdraw(self, record: Record) -> None:
        """Undo `create`: remove the directory of *record*, if it is empty."""
        with suppress(OSError):
            self.path(record).rmdir()

    def restore(self, record: Record) -> None:
        """Undo `set_aside`.

        Raises:
            StorageFailed: the directory cannot be moved back.
        """
        with self._reported(record), suppress(FileNotFoundError):
            self._move(self._removed, record.directory, self._volumes, record.directory)

    def discard(self, record: Record) -> None:
        """Move the directory that was set aside for *record*, now forgotten, into the trash.

        Raises:
            StorageFailed: the directory stays aside until the next start.
        """
        with self._reported(record), suppress(FileNotFoundError):
            self._move(self._removed, record.directory, self._trash, secrets.token_hex(8))

    def purge(self) -> None:
        """Empty the trash; log files that cannot be deleted, and leave them there.

        Raises:
            OSError: the trash cannot be read.
        """
        with _opened(self._trash) as trash:
            attempts: Counter[str] = Counter()
            stuck: set[str] = set()
            while entries := [entry for entry in os.listdir(trash) if entry not in stuck]:
                for entry in entries:
                    attempts[entry] += 1
                    try:
                        _delete(trash, entry)
                    except OSError as error:
                        if error.errno in RETRIED and attempts[entry] < PURGE_ATTEMPTS:
                            continue
                        stuck.add(entry)
                        where, why = self._trash / entry, error.strerror
                        log.warning("cannot delete all of %s: %s", where, why)

    def _refuse_mounts(self, record: Record) -> None:
        # The path of the data directory may have symlinks; the paths in mountinfo have none.
        path = os.fsencode(self._volumes.resolve() / record.directory)
        for mount in mountinfo.read():
            if mountinfo.is_below(mount.target, path):
                inner = os.fsdecode(os.path.relpath(mount.target, path))
                raise VolumeInUse(
                    f"volume {record.name!r} cannot be removed: {self.shown_path(record, inner)} is"
                    " a mount point inside it; unmount that first"
                )

    def _move(self, old_dir: Path, old: str, new_dir: Path, new: str) -> None:
        with _opened(old_dir) as old_fd, _opened(new_dir) as new_fd:
            names = (old_fd, os.fsencode(old), new_fd, os.fsencode(new))
            move = partial(syscalls.renameat2, *names, syscalls.RENAME_NOREPLACE)
            self._reserve.run(move)  # *new_dir* may have to grow
            os.fsync(new_fd)
            os.fsync(old_fd)

    @contextmanager
    def _reported(self, record: Record) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageFailed(
                f"cannot use {self.shown_path(record)}, which holds the files of volume"
                f" {record.name!r}: {error.strerror}"
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
    """Open the directory *name* in *parent* for reading; refuse a symlink and a mount point."""
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


def _delete(trash: int, entry: str) -> None:
    """Delete *entry* with its files, and move its subdirectories up into *trash*.

    A process that has it open may have replaced a subdirectory by a file, before that was moved.
    """
    if not stat.S_ISDIR(os.stat(entry, dir_fd=trash, follow_symlinks=False).st_mode):
        os.unlink(entry, dir_fd=trash)
        return
    with _opened_below(trash, entry) as directory, os.scandir(directory) as children:
        for child in children:
            with suppress(FileNotFoundError):  # a process that has it open may delete files too
                if child.is_dir(follow_symlinks=False):
                    token = secrets.token_hex(8)
                    os.rename(child.name, token, src_dir_fd=directory, dst_dir_fd=trash)
                else:
                    os.unlink(child.name, dir_fd=directory)
    os.rmdir(entry, dir_fd=trash)
