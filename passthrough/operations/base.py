"""What every group of operations stands on: the tables of one volume, and what it decided."""

import errno
import os

from passthrough.attributes import Attributes, Entry
from passthrough.cache import Cache
from passthrough.config import Config
from passthrough.decisions import decide
from passthrough.errors import os_error
from passthrough.handles import HandleTable, OpenFile
from passthrough.inodes import Inode, InodeTable
from passthrough.listing import OpenDirectory
from passthrough.opening import OpenFlags
from passthrough.ownership import Ownership


class Operations:
    """The state of one served volume, and the ways from it to a reply that several groups share."""

    def __init__(self, config: Config, source_fd: int) -> None:
        """Serve *source_fd*, an O_PATH descriptor of a directory, which this object then owns."""
        self.config = decide(config).config
        self.cache = Cache(self.config)
        self.inodes = InodeTable(source_fd, packed=self.config.use_host_ino)
        self.files: HandleTable[OpenFile] = HandleTable()
        self.directories: HandleTable[OpenDirectory] = HandleTable()
        self.ownership = Ownership(self.config)
        self._flags = OpenFlags(self.config)

    def close(self) -> None:
        """Close every descriptor."""
        self.files.close()
        self.directories.close()
        self.inodes.close()

    def _grant(self, fd: int) -> Entry:
        """An entry for the file behind *fd*, an O_PATH descriptor that this method takes."""
        try:
            attributes = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        inode = self.inodes.grant(fd, attributes)
        timeouts = self.cache.timeouts(attributes.st_mode)
        return Entry(inode.number, attributes, timeouts, self.ownership.shown(attributes))

    def _attributes(self, inode: Inode) -> Attributes:
        attributes = os.fstat(inode.fd)
        number = self.inodes.shown_number(inode)
        _, timeout = self.cache.timeouts(attributes.st_mode)
        return Attributes(number, attributes, timeout, self.ownership.shown(attributes))

    def _reopen(self, inode: Inode, kind: int, flags: int) -> int:
        """Open *inode* for real, if it is of *kind*."""
        if inode.kind != kind:
            raise os_error(errno.EBADF)
        return os.open(inode.path, self._flags.existing(flags))

    def _check_sealed(self) -> None:
        if self.config.seal_size:
            raise os_error(errno.EPERM)
