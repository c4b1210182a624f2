"""Passthrough: which file of the host the kernel reads, writes and maps in place of an inode's own.

The kernel learns of a host's file by an ioctl(2), gives it an id, and finds that id again in the
answer to OPEN. From then on reads and writes of the open file come here no more. One id serves all
who have an inode open: the kernel refuses a second one, and it refuses to mix those who pass
through with those whose data it caches (fs/fuse/iomode.c). So what the first open of an inode got
the others get too, until the last one has gone.

The kernel opens the host's file anew for each, with the caller's flags and without a question about
permissions; what it then does to the file it does with the capabilities of the thread that asked
for the id. That thread goes without CAP_FSETID: who writes takes suid and sgid bits away. Root
keeps them elsewhere, so a file that has such bits when it is opened does not pass through.

On an inode that is open for writing, the kernel sends a SETATTR that asks for nothing before a
write that may not keep suid and sgid bits. The worker then clears the bits on the host and answers
the new mode, so execve(2) never honours bits that a write has cleared.

The worker serves a file that is opened with O_DIRECT, because the kernel would hold on to the flag
when it is taken off again; dd(1) does that before it writes a rest that fills no block. With
`max_stack_depth` 2 where the source is an overlayfs, ecryptfs or FUSE, else 1, users may stack an
overlayfs on the volume. The worker serves what lies deeper, with one line in the log. One file in
memory is tried at the start: in a user namespace the kernel takes none.
"""

import errno
import fcntl
import logging
import os
import stat
import threading
from typing import Final

from passthrough.identity.credentials import ClearingPrivileges
from passthrough.session.channel import Channel

log = logging.getLogger(__name__)

NONE: Final = 0
"""In the place of an id: data goes through the worker."""

_PRIVILEGES: Final = stat.S_ISUID | stat.S_ISGID

# What a mount may stand on: a file system that stands on none itself, or one that stands on one
# more. The kernel stacks no higher, so that no overlayfs can stand on a mount of the latter kind.
_SHALLOW: Final = 1
_DEEP: Final = 2
# linux/magic.h: overlayfs, FUSE (a mount of which may pass through to something else), ecryptfs.
_STACKED: Final = frozenset({0x794C_7630, 0x6573_5546, 0xF15F})


# What errors of the ioctl mean, where they mean something else elsewhere.
_WHY: Final = {
    errno.ELOOP: "they lie on too many file systems, one on the other",
    errno.EPERM: "it takes CAP_SYS_ADMIN, and the worker has none that the host's kernel goes by",
    errno.EINVAL: "their file system knows no O_DIRECT, which allow_direct_io=false is to accept",
}


def stack_depth(filesystem_type: int) -> int:
    """How deep files lie on a source of this type, for `max_stack_depth` of INIT."""
    return _DEEP if filesystem_type in _STACKED else _SHALLOW


class _Backed:
    """An inode that is open."""

    __slots__ = ("id", "opens", "privileged")

    def __init__(self, number: int) -> None:
        self.id = number
        self.opens = 0
        self.privileged = False
        """Whether it was given suid or sgid bits since it is open."""


class Backings:
    """The ids of one mount's open inodes; safe for threads."""

    def __init__(self, channel: Channel, *, always_direct: bool = False) -> None:
        """With *always_direct*, files pass through only where O_DIRECT can be had on the host.

        Who asks for it is served without it then. But the kernel opens the host's file with it all
        the same, and a second way to open what passes through there is not.
        """
        self._channel = channel
        self._always_direct = always_direct
        self._lock = threading.Lock()
        self._backed: dict[int, _Backed] = {}
        self._told: set[int | None] = set()

    def __len__(self) -> int:
        """How many inodes are open."""
        return len(self._backed)

    def why_not(self) -> str:
        """Why no file can pass through, or nothing; to be called once INIT has been answered.

        In a user namespace of its own a process may mount, but not this.
        """
        fd = os.memfd_create("passfs-probe", os.MFD_CLOEXEC)
        try:
            self._channel.close_backing(self._channel.open_backing(fd))
        except OSError as error:
            return _why(error)
        else:
            return ""
        finally:
            os.close(fd)

    def open(self, number: int, fd: int) -> int:
        """The id for one more open of inode *number*, of which *fd* is a descriptor; or `NONE`."""
        with self._lock:
            backed = self._backed.get(number)
            if backed is not None:
                backed.opens += 1
                return backed.id
        made = self._make(fd)
        with self._lock:
            backed = self._backed.setdefault(number, _Backed(made))
            backed.opens += 1
        if made not in {NONE, backed.id}:  # another thread was faster
            self._channel.close_backing(made)
        return backed.id

    def passes(self, number: int) -> bool:
        """Return whether inode *number* is open and its data goes past the worker."""
        backed = self._backed.get(number)
        return backed is not None and backed.id != NONE

    def note_privileges(self, number: int) -> None:
        """Note that inode *number* has been given suid or sgid bits, if the inode passes through.

        A write by root, which the kernel does not ask about, takes the bits away.
        """
        backed = self._backed.get(number)
        if backed is not None and backed.id != NONE:
            backed.privileged = True

    def may_have_lost_privileges(self, number: int) -> bool:
        """Return whether the host may have taken bits away that the kernel remembers."""
        backed = self._backed.get(number)
        return backed is not None and backed.privileged

    def release(self, number: int) -> None:
        """One open of inode *number* less."""
        with self._lock:
            backed = self._backed.get(number)
            if backed is None:
                return
            backed.opens -= 1
            if backed.opens:
                return
            del self._backed[number]
        if backed.id != NONE:
            self._channel.close_backing(backed.id)

    def _make(self, fd: int) -> int:
        found = os.fstat(fd)
        if found.st_mode & _PRIVILEGES:
            return NONE
        try:
            if self._always_direct:
                _try_direct(fd)
            # For writers outside of the file's group the kernel asks before (SETATTR).
            with ClearingPrivileges(found.st_gid):
                return self._channel.open_backing(fd)
        except OSError as error:
            if error.errno not in self._told:
                self._told.add(error.errno)
                log.warning("some files are read and written by the worker: %s", _why(error))
            return NONE


def _why(error: OSError) -> str:
    return _WHY.get(error.errno or 0, str(error))


def explain(number: int) -> str:
    """Return why files do not pass through, by the errno *number*."""
    return _why(OSError(number, os.strerror(number)))


def _try_direct(fd: int) -> None:
    """See whether the file behind *fd*, which nobody uses yet, can be open with O_DIRECT.

    Raises:
        OSError: EINVAL, its file system has no such thing.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)
