"""What every group of operations stands on: the tables of one volume, and what it decided."""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from passthrough.core.freshness import Freshness
from passthrough.core.handles import HandleTable, OpenFile
from passthrough.core.inode_file import Inode
from passthrough.core.inodes import InodeTable
from passthrough.core.listing import OpenDirectory
from passthrough.core.locks import LockTable
from passthrough.core.mount_devices import Place
from passthrough.core.opening import OpenFlags
from passthrough.core.waiting import Waits
from passthrough.identity.attributes import PRIVILEGES, Attributes, Entry, keeps_sgid
from passthrough.identity.credentials import ClearingPrivileges
from passthrough.identity.idmap import Caller
from passthrough.identity.ownership import Ownership
from passthrough.linux import fdpath, syscalls
from passthrough.linux.errors import os_error
from passthrough.options.cache_policy import Cache
from passthrough.options.choices import Squash, Submounts
from passthrough.options.effective import Effective
from passthrough.options.timeouts import timeouts


class Operations:
    """The state of one served volume, and the ways from it to a reply that several groups share."""

    squashes = False
    """Whether operations act as the caller, which `asked_by` then names."""

    def __init__(self, config: Effective, source_fd: int) -> None:
        """Serve *source_fd*, an O_PATH descriptor of a directory, which this object then owns.

        Raises:
            OSError: the directory cannot be looked at.
        """
        self.config = config
        if self.squashes is not (self.config.squash is not Squash.NONE):
            raise ValueError(f"squash={self.config.squash} is not for {type(self).__name__}")
        self.cache = Cache(self.config)
        self.freshness = Freshness(timeouts(self.config))
        self.inodes = InodeTable(
            source_fd, self.config.inode_file_handles, packed=self.config.use_host_ino
        )
        self._hides_submounts = self.config.submounts is Submounts.HIDE
        with self.inodes.root.opened() as fd:
            self.source_type = syscalls.filesystem_type(fd)
        """The type of file system that the source lies on, linux/magic.h."""
        self._source_mount = self.inodes.root.place.mount
        self.files: HandleTable[OpenFile] = HandleTable()
        self.directories: HandleTable[OpenDirectory] = HandleTable()
        self.locks = LockTable()
        self.waits = Waits()
        self.ownership = Ownership(self.config)
        self._flags = OpenFlags(self.config)
        self._left_out: set[int | None] = set()  # causes, as errno, of which the log has one
        self._tell_lost: Callable[[int], object] = _nothing
        # What is open for users who opened nothing. Not by number: it may be another file's next.
        self._unopened: dict[Inode, int] = {}
        self._streams: dict[Inode, tuple[int, threading.Lock]] = {}

    def asked_by(self, caller: Caller) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return a guard: inside it, this thread handles a request of *caller*."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """Close every descriptor."""
        self.locks.close()
        self.files.close()
        self.directories.close()
        self.inodes.close()

    def tell_lost_privileges(self, tell: Callable[[int], object]) -> None:
        """Call *tell* with an inode number after a change of content has cleared suid or sgid."""
        self._tell_lost = tell

    def _is_hidden(self, inode: Inode) -> bool:
        """Whether *inode* is what is mounted below a source that shows no such thing."""
        return self._hides_submounts and inode.place.mount is not self._source_mount

    def _changing(self, number: int) -> Inode:
        """Inode *number*, to be changed, or something in it.

        Raises:
            OSError: EROFS, it is hidden; EPERM, its user is one whom the map lacks; ESTALE as
                InodeTable has it.
        """
        inode = self.inodes[number]
        if self._is_hidden(inode):
            raise os_error(errno.EROFS)
        if self.ownership.may_lack_owners:
            self.ownership.check_change(inode.stat())
        return inode

    def _grant(self, fd: int, place: Place | None) -> Entry:
        """An entry for the file behind *fd*, an O_PATH descriptor that this method takes.

        *place* as for InodeTable.grant.
        """
        try:
            attributes = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        inode = self.inodes.grant(fd, attributes, place)
        inode.told = self.freshness.moment()
        known_for = self.cache.timeouts(attributes.st_mode)
        return Entry(inode.number, attributes, known_for, self.ownership.shown(attributes))

    def _attributes(self, inode: Inode) -> Attributes:
        attributes = inode.stat()
        number = self.inodes.shown_number(inode)
        _, timeout = self.cache.timeouts(attributes.st_mode)
        return Attributes(number, attributes, timeout, self.ownership.shown(attributes))

    def _reopen(self, inode: Inode, kind: int, flags: int) -> int:
        """Open *inode* for real, if it is of *kind*."""
        if inode.kind != kind:
            raise os_error(errno.EBADF)
        with inode.opened() as fd:
            return os.open(fdpath.of(fd), self._flags.existing(flags))

    def _check_sealed(self) -> None:
        if self.config.seal_size:
            raise os_error(errno.EPERM)

    def _keeps_sgid(self, attributes: os.stat_result, caller: Caller | None) -> bool:
        """Return what `keeps_sgid` says of the owner that callers are shown."""
        return keeps_sgid(attributes, self.ownership.shown(attributes), caller)

    @contextlib.contextmanager
    def _clearing(
        self, number: int, attributes: os.stat_result, caller: Caller | None
    ) -> Iterator[None]:
        """A guard: changing the content of inode *number* takes its suid and sgid bits away.

        *attributes* are those before. *caller* is the one of `keeps_sgid`.
        """
        if not attributes.st_mode & PRIVILEGES:
            yield
            return
        keeps = self._keeps_sgid(attributes, caller)
        try:
            with ClearingPrivileges(attributes.st_gid) if keeps else ClearingPrivileges():
                yield
        finally:
            self._tell_lost(number)


def _nothing(_number: int) -> None:
    pass
