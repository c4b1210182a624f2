"""Inodes: which host file an inode number of the mount stands for, and for how long.

The kernel names files by the number that we gave it in a reply, and remembers how many such replies
there were; each counts as one lookup until FORGET gives it back. An inode therefore lives from the
first `grant` to the `forget` that brings its count to nought, and these two functions are the only
ones that change a count. In between it is held by inode_file.py, so that renames do not
matter and no path is ever needed.

Two names lead to one inode if st_ino, device and mount are the same. While the inode is held by a
descriptor that is all, because the host cannot give the number to another file. While it is held by
a file handle, the handles decide: a file that got a reused number is an inode of its own, even as
long as the kernel still knows the old one.

A number is the host's st_ino for files on the source's own device and mount, because programs
compare the numbers of a listing with those of stat(2). Files elsewhere below the source carry the
number of their place (places.py) above bit 47. What fits neither (0 and the root's, which FUSE
reserves, a host number of 48 bits and more, or one that an inode still has) is counted, with bit 55
set. In a *packed* table the source's own place has a number too: places count from 1, and every
file has the same form.

Threads: dictionary work happens under one lock, system calls outside of it. The kernel forgets no
directory in which it looks a name up, and no file that it asks something of.

A file that is removed through the volume keeps its number until the kernel forgets it, by a
descriptor that is kept until then. pyfuse3 knows one number for both listings and stat(2).
"""

import contextlib
import errno
import itertools
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final

from passthrough.core.inode_file import ByDescriptor, ByHandle, Holding, Inode
from passthrough.core.mount_devices import Place, Places, SourceMount
from passthrough.linux import memory, syscalls
from passthrough.options.choices import InodeFileHandles

ROOT: Final = 1  # FUSE_ROOT_ID, linux/fuse.h

_HOST_BITS: Final = 47
_HOST_LIMIT: Final = 1 << _HOST_BITS
_PLACE_LIMIT: Final = 1 << 8
_COUNTED: Final = 1 << 55
# A table that once held more than this shrinks when it is down to one part in so many.
_LARGE: Final = 10_000
_SHRINK: Final = 8
# How many inodes are looked at for one that will do.
_SOON: Final = 1_000
# Of so few, made anew among what is about to go, the keys would keep more than they give back.
_SMALL: Final = 1_000


class InodeTable:
    """All inodes that the kernel knows, by number and by identity on the host."""

    def __init__(
        self,
        source_fd: int,
        handles: InodeFileHandles = InodeFileHandles.PREFER,
        *,
        packed: bool = False,
    ) -> None:
        """Make the root of *source_fd*, which the table owns from here on.

        Raises:
            OSError: as statx(2) reports it.
        """
        self.holding = Holding(handles)
        self._lock = threading.Lock()
        self._first_place = 1 if packed else 0
        self._counter = itertools.count(1)
        try:
            attributes = os.fstat(source_fd)
            wanted = handles is not InodeFileHandles.NEVER
            self._places = Places(source_fd, self._lock, handles=wanted)
        except BaseException:
            os.close(source_fd)
            raise
        # Its one lookup is never forgotten: the kernel holds the root without having looked it up.
        self.root = ByDescriptor(ROOT, self._places.source, attributes, source_fd)
        self._by_number: dict[int, Inode] = {ROOT: self.root}
        self._by_identity: dict[int, Inode] = {attributes.st_ino: self.root}  # of place 0
        self._descriptors = 0  # without the root's
        self._most = _LARGE
        self._shrink_below = 0
        self._shrunk = False

    def __len__(self) -> int:
        return len(self._by_number)

    def latest(self, count: int) -> Sequence[int]:
        """The numbers of at most *count* inodes, the last that the kernel was told of first."""
        with self._lock:
            return tuple(itertools.islice(reversed(self._by_number), count))

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    def __getitem__(self, number: int) -> Inode:
        """The inode that the kernel calls *number*.

        Raises:
            OSError: ESTALE, which makes the kernel look the name up again.
        """
        inode = self._by_number.get(number)
        if inode is None:
            with self._lock:  # it may just be filled anew
                inode = self._by_number.get(number)
        if inode is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return inode

    def neighbour(self, inode: Inode, host_number: int) -> Inode | None:
        """What the kernel knows beside *inode*, in its place, by its host's number; if it does."""
        return self._by_identity.get(inode.place.base | host_number)

    def some_file(self) -> int | None:
        """The number of a regular file that the kernel knows, if one is found soon."""
        with self._lock:
            for number, inode in itertools.islice(self._by_number.items(), _SOON):
                if inode.kind == stat.S_IFREG:
                    return number
        return None

    def opened(self, number: int) -> AbstractContextManager[int]:
        """A guard that lends a descriptor of inode *number*, which may be an O_PATH one.

        Raises:
            OSError: ESTALE, which makes the kernel look the name up again.
        """
        return self[number].opened()

    def grant(self, fd: int, attributes: os.stat_result, place: Place | None = None) -> Inode:
        """Count one lookup of the file behind *fd*, an O_PATH descriptor, with its *attributes*.

        *place* is that of the directory in which the file was found without crossing a mount point,
        None if one was crossed, or may have been. Takes *fd*: it becomes the inode's own, or is
        closed.

        Raises:
            OSError: the file's mount or its handle cannot be found out.
        """
        if place is None:
            return self._grant_across(fd, attributes)
        with self._lock:
            if attributes.st_dev != place.device:
                place = self._places.on(place.mount, attributes.st_dev)
            inode = self._by_identity.get(place.base | attributes.st_ino)
            if inode is None:
                if self._descriptors < self.holding.budget:
                    return self._add(ByDescriptor(0, place, attributes, fd))
            elif not inode.handle:
                if inode.number != ROOT:  # never forgotten, and so not counted either
                    inode.lookups += 1
            else:
                inode = None  # or not: the handles decide
        if inode is None:
            return self._grant_by_handle(fd, attributes, place)
        os.close(fd)
        return inode

    def _grant_across(self, fd: int, attributes: os.stat_result) -> Inode:
        """Grant what was found behind a mount point."""
        try:
            directory = stat.S_ISDIR(attributes.st_mode)
            mount = self._places.enter(fd, directory=directory)
        except BaseException:
            os.close(fd)
            raise
        with self._lock:
            place = self._places.on(mount, attributes.st_dev)
        try:
            return self.grant(fd, attributes, place)
        finally:
            with self._lock:
                last = self._places.leave(mount)
            if last:
                mount.close()

    def _grant_by_handle(self, fd: int, attributes: os.stat_result, place: Place) -> Inode:
        try:
            handle = self.holding.handle(fd, place.mount)
        except BaseException:
            os.close(fd)
            raise
        with self._lock:
            inode = self._by_identity.get(place.base | attributes.st_ino)
            if inode is not None and (not inode.handle or inode.handle == handle):
                inode.lookups += inode.number != ROOT
            elif not handle:
                return self._add(ByDescriptor(0, place, attributes, fd))
            else:
                made = self.holding.by_handle(0, place, attributes, handle)
                inode = self._add(made)
                if made.keep_open(fd):  # under the lock: nobody has forgotten it yet
                    return inode
        os.close(fd)
        return inode

    def forget(self, number: int, count: int) -> Inode | None:
        """Give *count* lookups of *number* back; what nobody knows any more is closed.

        Returns:
            The inode that has gone with them, if it has.
        """
        if number == ROOT:
            return None
        with self._lock:
            inode = self._by_number.get(number)
            if inode is None:
                return None
            inode.lookups -= count
            if inode.lookups > 0:
                return None
            left = self._remove(inode)
            shrunk = self._shrink()
        inode.close()
        if left is not None:
            left.close()
        if shrunk:
            memory.return_freed()
        return inode

    def rest(self) -> None:
        """Give memory back, if much was forgotten since this was last called; for quiet moments."""
        if self._shrunk:
            self._shrunk = False
            memory.return_freed()

    def removing(
        self, place: Place, directory_fd: int, name: bytes
    ) -> AbstractContextManager[None]:
        """A guard around the removal of *name*: its file keeps its number until it is forgotten.

        Without it, an inode that is held by handle would lose its number to the next file that is
        created, before FORGET comes: that file would have to get another number than the host's.
        """
        if self._descriptors == len(self._by_number) - 1:
            return contextlib.nullcontext()
        return self._keeping_number(place, directory_fd, name)

    @contextlib.contextmanager
    def _keeping_number(self, place: Place, directory_fd: int, name: bytes) -> Iterator[None]:
        try:
            fd = syscalls.open_same_mount(directory_fd, name)
        except OSError:
            fd = syscalls.MOUNT_POINT
        if fd == syscalls.MOUNT_POINT:  # which the removal will report, as it will any error
            yield
            return
        try:
            yield
        except BaseException:
            os.close(fd)
            raise
        with contextlib.suppress(OSError):  # it is removed, whatever its number will be
            self.pin(fd, place)

    def pin(self, fd: int, place: Place) -> None:
        """Have the file behind *fd* keep its number until it is forgotten, if it has no name.

        Takes *fd*, a descriptor that may be an O_PATH one; *place* as for `grant`.
        """
        try:
            attributes = os.fstat(fd)
            if attributes.st_nlink:
                return
            handle = self.holding.handle(fd, place.mount)
            with self._lock:
                place = self._places.on(place.mount, attributes.st_dev)
                inode = self._by_identity.get(place.base | attributes.st_ino)
                if isinstance(inode, ByHandle) and inode.handle == handle:
                    inode.pin(fd)
                    fd = -1
        finally:
            if fd >= 0:
                os.close(fd)

    def close(self) -> None:
        """Close every descriptor; the table is empty afterwards, its root included."""
        with self._lock:
            inodes = list(self._by_number.values())
            self._by_number.clear()
            self._by_identity.clear()
        for inode in inodes:
            inode.close()
        self._places.close()

    def shown_number(self, inode: Inode) -> int:
        """The st_ino of *inode* for users: its number, and of the root what that would else be."""
        if inode.number == ROOT:
            return self._first_place << _HOST_BITS | inode.host_number
        return inode.number

    def shown_neighbour(self, inode: Inode, host_number: int) -> int:
        """The st_ino for users of a file beside *inode*, in its place, by its host's number.

        For `..` in a listing, whose entry is not looked up.
        """
        if inode.number & _COUNTED:
            return host_number
        return self.shown_number(inode) - inode.host_number + host_number

    # Under the lock

    def _add(self, inode: Inode) -> Inode:
        """Give *inode* its number."""
        place, host_number = inode.place, inode.host_number
        inode.number = self._number(place, host_number)
        self._by_number[inode.number] = inode
        self._by_identity[place.identity(host_number)] = inode
        self._descriptors += not inode.handle
        place.mount.users += 1
        return inode

    def _remove(self, inode: Inode) -> SourceMount | None:
        """Take *inode* out; gives its mount if it was the last one there, to be closed then."""
        del self._by_number[inode.number]
        identity = inode.place.base | inode.host_number
        # A file that got the number of one that is gone has taken its place there.
        if self._by_identity.get(identity) is inode:
            del self._by_identity[identity]
        self._descriptors -= not inode.handle
        mount = inode.place.mount
        return mount if self._places.leave(mount) else None

    def _shrink(self) -> bool:
        """Fill the dictionaries anew when most of what they held is gone: they never shrink.

        Again at each fraction of that size, so that little is left in the end and a single forget
        costs next to nothing; and not once more before the table has grown large.
        """
        size = len(self._by_number)
        if size >= self._shrink_below:
            if size > self._most:
                self._most = size
                self._shrink_below = size // _SHRINK
            return False
        if size > _SMALL:
            _refill(self._by_number)
            _refill(self._by_identity)
        self._most = _LARGE
        self._shrink_below = size // _SHRINK
        self._shrunk = True
        return True

    def _number(self, place: Place, host_number: int) -> int:
        index = place.index + self._first_place
        if index < _PLACE_LIMIT and host_number < _HOST_LIMIT:
            # The same object where it can be: with millions of inodes, each counts.
            number = index << _HOST_BITS | host_number if index else host_number
            if number > ROOT and number not in self._by_number:
                return number
        return _COUNTED | next(self._counter)


def _refill(table: dict[int, Inode]) -> None:
    """Have *table* take no more memory than it needs.

    The same object: a new one would lie among what is about to go (see `_SMALL`).
    """
    entries = dict(table)
    table.clear()
    table.update(entries)
