"""Inodes: which host file an inode number of the mount stands for, and for how long.

The kernel names files by the number that we gave it in a reply, and remembers how many such replies
there were; each counts as one lookup until FORGET gives it back. An inode therefore lives from the
first `grant` to the `forget` that brings its count to nought, and these two functions are the only
ones that change a count. In between it holds an O_PATH descriptor: the host cannot reuse the file's
own inode number, renames do not matter, and no path is ever needed.

A number is the host's st_ino for files on the source's own device, because programs compare the
numbers of a listing with those of stat(2). Files on other devices below the source carry the number
of their device above bit 47. Numbers that fit neither (0 and the root's, which FUSE reserves, or a
host number of 48 bits and more) are counted, with bit 55 set. In a *packed* table
the source's own device has a number too: devices count from 1, and every file has the same form.

Threads: dictionary work happens under one lock, system calls outside of it.
"""

import errno
import itertools
import os
import stat
import threading
from typing import Final

from passthrough import fdpath

ROOT: Final = 1  # FUSE_ROOT_ID, linux/fuse.h

_HOST_BITS: Final = 47
_HOST_LIMIT: Final = 1 << _HOST_BITS
_DEVICE_LIMIT: Final = 1 << 8
_COUNTED: Final = 1 << 55

type_of = stat.S_IFMT


class Inode:
    """A file that the kernel knows. The table owns *fd*; everyone else borrows it."""

    __slots__ = ("device", "fd", "host_number", "kind", "lookups", "number")

    def __init__(self, number: int, fd: int, attributes: os.stat_result) -> None:
        self.number = number
        self.fd = fd
        self.device = attributes.st_dev
        self.host_number = attributes.st_ino
        self.kind = type_of(attributes.st_mode)
        self.lookups = 0

    @property
    def path(self) -> bytes:
        """A path to the very file, symlinks included, for calls that take no O_PATH fd."""
        return fdpath.of(self.fd)


class InodeTable:
    """All inodes that the kernel knows, by number and by identity on the host."""

    def __init__(self, source_fd: int, *, packed: bool = False) -> None:
        """Make the root of *source_fd*, which the table owns from here on."""
        attributes = os.fstat(source_fd)
        self.root = Inode(ROOT, source_fd, attributes)
        # Never forgotten: the kernel holds the root without having looked it up.
        self.root.lookups = 1
        self._lock = threading.Lock()
        self._by_number: dict[int, Inode] = {ROOT: self.root}
        self._by_identity = {(attributes.st_ino, attributes.st_dev): self.root}
        self._first_device = 1 if packed else 0
        self._devices = {attributes.st_dev: self._first_device}
        self._counter = itertools.count(1)

    def __len__(self) -> int:
        return len(self._by_number)

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    def __getitem__(self, number: int) -> Inode:
        """The inode that the kernel calls *number*.

        Raises:
            OSError: ESTALE, which makes the kernel look the name up again.
        """
        try:
            return self._by_number[number]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def grant(self, fd: int, attributes: os.stat_result) -> Inode:
        """Count one lookup of the file behind *fd*, an O_PATH descriptor, with its *attributes*.

        Takes *fd*: it becomes the inode's own, or is closed where the file is known already.
        """
        identity = (attributes.st_ino, attributes.st_dev)
        with self._lock:
            inode = self._by_identity.get(identity)
            known = inode is not None
            if inode is None:
                inode = Inode(self._number(*identity), fd, attributes)
                self._by_identity[identity] = inode
                self._by_number[inode.number] = inode
            if inode.number != ROOT:  # never forgotten, and so not counted either
                inode.lookups += 1
        if known:
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
            del self._by_number[number]
            del self._by_identity[inode.host_number, inode.device]
            fd, inode.fd = inode.fd, -1
        os.close(fd)
        return inode

    def close(self) -> None:
        """Close every descriptor; the table is empty afterwards, its root included."""
        with self._lock:
            inodes = list(self._by_number.values())
            self._by_number.clear()
            self._by_identity.clear()
        for inode in inodes:
            fd, inode.fd = inode.fd, -1
            os.close(fd)

    def shown_number(self, inode: Inode) -> int:
        """The st_ino of *inode* for users: its number, and of the root what that would else be."""
        if inode.number == ROOT:
            return self._first_device << _HOST_BITS | inode.host_number
        return inode.number

    def shown_neighbour(self, inode: Inode, host_number: int) -> int:
        """The st_ino for users of a file beside *inode*, on the same device, by its host's number.

        For `..` in a listing, whose entry is not looked up.
        """
        if inode.number & _COUNTED:
            return host_number
        return self.shown_number(inode) - inode.host_number + host_number

    def _number(self, host_number: int, device: int) -> int:
        index = self._devices.setdefault(device, len(self._devices) + self._first_device)
        if index < _DEVICE_LIMIT and host_number < _HOST_LIMIT:
            number = index << _HOST_BITS | host_number
            if number > ROOT:
                return number
        return _COUNTED | next(self._counter)
