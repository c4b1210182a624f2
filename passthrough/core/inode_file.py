"""How an inode is held: by an O_PATH descriptor, or by a kernel file handle.

A descriptor is quick to use, and keeps the host from giving the file's inode number to another
file; but there may be only so many (RLIMIT_NOFILE), and the kernel may know millions of inodes.
A file handle is a name that the host's file system gave the file, name_to_handle_at(2): it costs
nothing while it is not used, has to be opened for each use, and tells a file from a later one with
the same number. A file that is deleted elsewhere is then gone for good: opening says ESTALE.

Everybody borrows, and alike from both kinds:

    with inode.opened() as fd:
        ...

What was opened for that is closed when the last borrower lets go. Directories are kept open for a
while, because who asks for one name in a directory asks for the next one too.

With inode_file_handles=prefer, descriptors are kept for as many inodes as half of RLIMIT_NOFILE;
the other half is for open files and for a few dozen descriptors of the worker's own. Inodes that
come after are held by handle. Of the directories that are opened by handle, the 64 used last stay
open. Handles are tried on the source at the start. A worker that holds nothing by handle gives up
CAP_DAC_READ_SEARCH and open_by_handle_at(2). A mount below the source without handles is served by
descriptors.
"""

import errno
import os
import resource
import stat
import sys
import threading
from contextlib import AbstractContextManager
from typing import Final

from passthrough.core.freshness import NEVER
from passthrough.core.mount_devices import Place, SourceMount
from passthrough.identity import powerless
from passthrough.linux import syscalls
from passthrough.options.choices import InodeFileHandles

# Half of the descriptors are for inodes, the other half for the files and directories that users
# have open, of which there is one each, for borrowing, and for a few dozen of the worker's own.
_INODES_SHARE: Final = 2
# Directories kept open at most: more than one walk through a tree holds, and few beside the rest.
_RECENT: Final = 64
_RECENT_SHARE: Final = 16

type_of = stat.S_IFMT


class Inode:
    """A file that the kernel knows. The table owns it, and alone changes what `lookups` counts."""

    __slots__ = ("host_number", "kind", "lookups", "number", "place", "told")

    handle: bytes = b""
    """What it is held by; empty where that is a descriptor."""
    number: int
    place: Place
    host_number: int
    """The host's st_ino."""
    kind: int
    """The file's type, S_IF*."""
    lookups: int
    told: int
    """The moment at which the kernel was last told of it, freshness.py."""

    def opened(self) -> AbstractContextManager[int]:
        """A guard that lends a descriptor, which may be an O_PATH one.

        Raises:
            OSError: ESTALE if the file is gone.
        """
        raise NotImplementedError

    def find(self, name: bytes) -> int:
        """An O_PATH descriptor of *name* in this directory, of a symlink itself; the caller's.

        `syscalls.MOUNT_POINT` if something is mounted on *name*.

        Raises:
            OSError: ESTALE if the directory is gone; as openat2(2) reports it.
        """
        with self.opened() as fd:
            return syscalls.open_same_mount(fd, name)

    def stat(self) -> os.stat_result:
        """The attributes as the host has them now.

        Raises:
            OSError: ESTALE if the file is gone.
        """
        with self.opened() as fd:
            return os.fstat(fd)

    def close(self) -> None:
        """Let the file go."""
        raise NotImplementedError


class ByDescriptor(Inode):
    """An inode held by an O_PATH descriptor, which it owns; lending it costs nothing."""

    __slots__ = ("_fd",)

    def __init__(self, number: int, place: Place, attributes: os.stat_result, fd: int) -> None:
        """Take *fd*, with one lookup."""
        self.number = number
        self.place = place
        self.host_number = attributes.st_ino
        self.kind = type_of(attributes.st_mode)
        self.lookups = 1
        self.told = NEVER
        self._fd = fd

    def opened(self) -> "ByDescriptor":
        """A guard that lends the descriptor."""
        return self

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        pass

    # The way of most requests, without the guard.

    def find(self, name: bytes) -> int:
        """As of every inode."""
        return syscalls.open_same_mount(self._fd, name)

    def stat(self) -> os.stat_result:
        """As of every inode."""
        return os.fstat(self._fd)

    def close(self) -> None:
        """Give the descriptor up."""
        fd, self._fd = self._fd, -1
        os.close(fd)


class _Loan:
    """A descriptor opened for borrowers, closed when none of them has this object any more."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        pass

    def __del__(self) -> None:
        os.close(self._fd)


class Recent:
    """Directories held by handle that were used last, kept open; safe for threads."""

    def __init__(self, limit: int) -> None:
        """Keep *limit* of them."""
        self._limit = limit
        self._loans: dict[ByHandle, _Loan] = {}
        self._lock = threading.Lock()

    def find(self, inode: "ByHandle") -> _Loan | None:
        """What *inode* is open by, if it is."""
        with self._lock:
            loan = self._loans.pop(inode, None)
            if loan is not None:
                self._loans[inode] = loan  # the last one to be dropped
        return loan

    def keep(self, inode: "ByHandle", loan: _Loan) -> None:
        """Keep *inode* open, and not the one any more that was not used for longest."""
        oldest = None
        with self._lock:
            self._loans[inode] = loan
            if len(self._loans) > self._limit:
                oldest = self._loans.pop(next(iter(self._loans)))
        del oldest  # closed here, outside of the lock

    def drop(self, inode: "ByHandle") -> None:
        """Keep *inode* open no longer."""
        with self._lock:
            loan = self._loans.pop(inode, None)
        del loan


class ByHandle(Inode):
    """An inode held by a file handle, which is opened through its mount."""

    __slots__ = ("_pin", "_recent", "handle")

    def __init__(
        self,
        number: int,
        place: Place,
        attributes: os.stat_result,
        handle: bytes,
        recent: Recent | None,
    ) -> None:
        """With one lookup; *recent* is where a directory is kept open, None for others."""
        self.number = number
        self.place = place
        self.host_number = attributes.st_ino
        self.kind = type_of(attributes.st_mode)
        self.lookups = 1
        self.told = NEVER
        self.handle = handle
        self._recent = recent
        self._pin: _Loan | None = None

    def keep_open(self, fd: int) -> bool:
        """Whether *fd*, a descriptor of this file, is taken for the borrowers that come next."""
        if self._recent is None:
            return False
        self._recent.keep(self, _Loan(fd))
        return True

    def pin(self, fd: int) -> None:
        """Hold the file by *fd* as well, which this takes, for as long as it is held at all."""
        self._pin = _Loan(fd)

    def opened(self) -> _Loan:
        """A guard that lends a descriptor.

        Raises:
            OSError: ESTALE if the file is gone.
        """
        if self._pin is not None:
            return self._pin
        recent = self._recent
        if recent is None:
            return self._open()
        loan = recent.find(self)
        if loan is None:
            loan = self._open()
            recent.keep(self, loan)
        return loan

    def close(self) -> None:
        """Give the handle up."""
        self._pin = None
        if self._recent is not None:
            self._recent.drop(self)

    def _open(self) -> _Loan:
        with powerless.as_itself():
            fd = syscalls.open_by_handle_at(self.place.mount.fd, self.handle, os.O_PATH)
        return _Loan(fd)


class Holding:
    """Decides how inodes are held."""

    def __init__(self, mode: InodeFileHandles) -> None:
        """Take the limit of descriptors that this process has now."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit == resource.RLIM_INFINITY:
            limit = sys.maxsize
        self._recent = Recent(min(_RECENT, limit // _RECENT_SHARE))
        self.budget = {
            InodeFileHandles.NEVER: sys.maxsize,
            InodeFileHandles.PREFER: limit // _INODES_SHARE,
            InodeFileHandles.MANDATORY: 0,
        }[mode]
        """How many inodes may be held by a descriptor."""

    def handle(self, fd: int, mount: SourceMount) -> bytes:
        """The handle of the file behind *fd* on *mount*; empty if it can have none.

        Raises:
            OSError: as name_to_handle_at(2) reports it.
        """
        if mount.fd < 0:
            return b""
        try:
            return syscalls.name_to_handle_at(fd)[1]
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return b""

    def by_handle(
        self, number: int, place: Place, attributes: os.stat_result, handle: bytes
    ) -> ByHandle:
        """An inode that is held by *handle*."""
        recent = self._recent if stat.S_ISDIR(attributes.st_mode) else None
        return ByHandle(number, place, attributes, handle, recent)
