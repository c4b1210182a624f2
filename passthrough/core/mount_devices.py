"""Where files lie: on which mount, and there on which device; part of what an inode is.

Two bind mounts of one file system show the same files, with the same st_ino and st_dev, and must
stay apart: one may be read-only, and a directory must not have two parents. What tells them apart
is the mount. To ask for that of each file would cost as much as its attributes. It is not needed:
a file lies on the mount of its directory, unless a mount point was crossed on the way, and
openat2(2) with RESOLVE_NO_XDEV finds the file and says so in one call (open_same_mount), for a
bind mount of the same file system and for one that was made this very moment too. Only then is the
kernel asked for the mount's id.

Numbers of devices say more on one mount: a file system may have several (subvolumes of btrfs).

So nothing watches the table of mounts, and no mount can come unnoticed. A mount of passfs that is
bound below the source later is not entered: the name answers ELOOP, and the file system there is
never asked.
"""

import logging
import os
import threading
from typing import Final

from passthrough.identity import powerless
from passthrough.linux import filehandles, syscalls

log = logging.getLogger(__name__)

# st_ino has 64 bits; in an identity the number of the place stands above them.
HOST_NUMBER_BITS: Final = 64


class Place:
    """One device on one mount: here a st_ino means one file."""

    __slots__ = ("base", "device", "index", "mount")

    def __init__(self, mount: "SourceMount", device: int, index: int) -> None:
        self.mount = mount
        self.device = device
        self.index = index
        """A number from 0 on, the source's; the same one whenever the place is come upon again."""
        self.base = index << HOST_NUMBER_BITS
        """An identity is this and a st_ino."""

    def identity(self, host_number: int) -> int:
        """What tells the file with this st_ino from all others; on the source, that itself."""
        return self.base | host_number if self.index else host_number


class SourceMount:
    """A mount that inodes lie on, of which *users* counts them; owns *fd*.

    A mount that is used cannot be unmounted otherwise than lazily, and so its id is not given to
    another meanwhile.
    """

    __slots__ = ("fd", "number", "places", "users")

    def __init__(self, number: int, fd: int) -> None:
        self.number = number
        self.fd = fd
        """What handles are opened by: a real descriptor of a directory, -1 where none are."""
        self.places: dict[int, Place] = {}
        self.users = 1

    def close(self) -> None:
        """Let the mount go."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Places:
    """The mounts that inodes lie on. What says so is to be called under the table's lock."""

    def __init__(self, source_fd: int, lock: threading.Lock, *, handles: bool) -> None:
        """Know the mount of *source_fd*, a directory that is borrowed; share the table's *lock*.

        With *handles*, a descriptor is kept for each mount that has file handles.
        """
        self._lock = lock
        self._handles = handles
        self._told = False
        self._mounts: dict[int, SourceMount] = {}
        # Never emptied: what is forgotten and found again shall have its number again. The kernel
        # gives the ids of mounts that are gone to new ones, so there are not many.
        self._indexes: dict[tuple[int, int], int] = {}
        device = os.fstat(source_fd).st_dev
        self.source = self.on(self.enter(source_fd, directory=True), device)

    def enter(self, fd: int, *, directory: bool) -> SourceMount:
        """The mount of *fd*, a file that was found across a mount point, for one more user.

        Not under the lock.

        Raises:
            OSError: as statx(2) reports it.
        """
        number = syscalls.mount_id(fd)
        with self._lock:
            mount = self._mounts.get(number)
            if mount is not None:
                mount.users += 1
                return mount
        made = SourceMount(number, self._opened(fd) if self._handles and directory else -1)
        with self._lock:
            mount = self._mounts.setdefault(number, made)
            if mount is made:
                return made
            mount.users += 1
        made.close()  # another thread was faster
        return mount

    def on(self, mount: SourceMount, device: int) -> Place:
        """The place of *device* on a mount; under the lock."""
        place = mount.places.get(device)
        if place is None:
            index = self._indexes.setdefault((device, mount.number), len(self._indexes))
            place = mount.places[device] = Place(mount, device, index)
        return place

    def leave(self, mount: SourceMount) -> bool:
        """One user less; whether *mount* is to be closed, after the lock; under the lock."""
        mount.users -= 1
        if mount.users:
            return False
        del self._mounts[mount.number]
        return True

    def close(self) -> None:
        """Close every descriptor; may be called again."""
        with self._lock:
            mounts = list(self._mounts.values())
            self._mounts.clear()
        for mount in mounts:
            mount.close()

    def _opened(self, fd: int) -> int:
        try:
            with powerless.as_itself():
                return filehandles.open_mount(fd)
        except OSError as error:
            if not self._told:
                self._told = True
                log.warning("some files are held by descriptors: %s", filehandles.reason(error))
            return -1
