"""How requests come and answers go: what a session needs of a transport, and /dev/fuse as one.

A channel knows headers and bytes, and nothing of what they mean. Any number of threads may use that
of /dev/fuse at once, each with a request of its own.

The descriptor of /dev/fuse is never cloned: when a clone is closed, the kernel fails the requests
that the clone holds.
"""

import errno
import fcntl
import logging
import mmap
import os
from collections.abc import Sequence
from typing import Final, Protocol

from passthrough.session.abi import DEV_IOC_BACKING_CLOSE, DEV_IOC_BACKING_OPEN
from passthrough.session.polling import Polling
from passthrough.session.request import Request
from passthrough.session.wire import BACKING_ID, BACKING_MAP, IN_HEADER, OUT_HEADER, WRITE_IN

log = logging.getLogger(__name__)

# The most that one READ, WRITE or listing carries: as much as Linux allows, FUSE_MAX_MAX_PAGES.
MAX_WRITE: Final = 1024 * 1024
_HEADERS: Final = IN_HEADER.size + WRITE_IN.size
# A request begins so that the data of a WRITE lies on pages of its own, as O_DIRECT likes it.
_START: Final = mmap.PAGESIZE - _HEADERS
# Names and attributes' values may be as long; the kernel wants at least the room for a WRITE.
_ROOM: Final = mmap.PAGESIZE + MAX_WRITE

# The kernel takes an errno of this range only.
_LAST_ERRNO: Final = 511

# Up to so many bytes, a copy costs less than a second piece for the kernel to take.
_ONE_PIECE: Final = 4096

# It is unmounted everywhere, or aborted; the second while a request was being read.
_ENDED: Final = frozenset({errno.ENODEV, errno.ECONNABORTED})
_NOBODY_WAITS: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EPERM})
_LEFT: Final = -1


def checked_errno(number: int) -> int:
    """*number*, or EIO where the kernel would not take it."""
    return number if 0 < number <= _LAST_ERRNO else errno.EIO


class Replies(Protocol):
    """What takes answers."""

    def reply(self, unique: int, body: bytes) -> None:
        """Answer the request *unique* with success."""

    def fail(self, unique: int, number: int) -> None:
        """Answer the request *unique* with errno *number*."""


class Channel(Replies, Protocol):
    """What brings requests and takes answers."""

    def open_request(self) -> Request:
        """Make a place for requests, of the one thread that asks."""

    def receive(self, request: Request) -> bool:
        """Wait for a request; False when there will be no more.

        Raises:
            OSError: the transport is broken.
        """

    def sample(self) -> None:
        """Called by the main thread every `thread_slots.SAMPLE_INTERVAL_S` while there is work."""

    def idle(self) -> None:
        """Called by the main thread when it stops sampling."""

    def notify(self, code: int, parts: Sequence[bytes]) -> None:
        """Tell the kernel something unasked.

        Raises:
            OSError: ENOENT, it knows no such inode or name; as the kernel reports it.
        """

    def open_backing(self, fd: int) -> int:
        """Make the file behind *fd* known to the kernel, to pass through to; gives its id.

        Raises:
            OSError: ELOOP, it lies too deep; EPERM without CAP_SYS_ADMIN; as the kernel reports it.
        """

    def close_backing(self, number: int) -> None:
        """Give the id *number* up; who has it open goes on."""


class DeviceChannel:
    """The descriptor of /dev/fuse that a mount was made with; borrowed.

    It must not be a clone, FUSE_DEV_IOC_CLONE: when a clone is closed, the kernel fails the
    requests that the clone holds.
    """

    def __init__(self, fuse_fd: int) -> None:
        """Borrow *fuse_fd*, and have it wait for requests, whatever it did before."""
        # Not os.set_blocking(): Python calls ioctl(2) FIONBIO for it, which a sandbox refuses.
        flags = fcntl.fcntl(fuse_fd, fcntl.F_GETFL)
        fcntl.fcntl(fuse_fd, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
        self._fd = fuse_fd
        self._polling = Polling(fuse_fd)

    def leave(self) -> None:
        """Use the descriptor no more: its number may be another's next.

        A thread that the host has held up till now has its answer dropped; one that has had no
        turn before it could wait gets no request.
        """
        self._fd = _LEFT

    def sample(self) -> None:
        """Decide whether to poll before sleeping."""
        self._polling.sample()

    def idle(self) -> None:
        """Forget all trials of polling."""
        self._polling.reset()

    def open_request(self) -> Request:
        """Make a place for requests."""
        # Not a bytearray: pages that no request has filled take no memory. Private: else they would
        # belong to a file, and giving them up would not give them back.
        buffer = mmap.mmap(-1, _ROOM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return Request(buffer, _START)

    def receive(self, request: Request) -> bool:
        """Wait for a request; False when the file system is unmounted everywhere, or aborted."""
        polling = self._polling
        if polling.on:
            polling.wait()
        while True:
            try:
                request.length = os.readv(self._fd, request.into)
            except OSError as error:
                if error.errno in _ENDED or self._fd == _LEFT:
                    return False
                if error.errno != errno.ENOENT:  # it was taken back before it was read
                    raise
            else:
                polling.received += 1
                return request.length > 0

    def reply(self, unique: int, body: bytes) -> None:
        """Answer with success."""
        header = OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique)
        try:
            if len(body) <= _ONE_PIECE:
                os.write(self._fd, header + body)
            else:
                os.writev(self._fd, (header, body))
        except OSError as error:
            self._undelivered(error)

    def fail(self, unique: int, number: int) -> None:
        """Answer with an errno."""
        try:
            os.write(self._fd, OUT_HEADER.pack(OUT_HEADER.size, -checked_errno(number), unique))
        except OSError as error:
            self._undelivered(error)

    def notify(self, code: int, parts: Sequence[bytes]) -> None:
        """Tell the kernel something, one of abi.Notification."""
        length = OUT_HEADER.size + sum(map(len, parts))
        os.writev(self._fd, (OUT_HEADER.pack(length, code, 0), *parts))

    def open_backing(self, fd: int) -> int:
        """As of every channel."""
        # Not bytes: only with a buffer that may change does this give what ioctl(2) returns.
        backing = bytearray(BACKING_MAP.pack(fd, 0, 0))
        if self._fd == _LEFT:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        number: int = fcntl.ioctl(self._fd, DEV_IOC_BACKING_OPEN, backing)
        return number

    def close_backing(self, number: int) -> None:
        """As of every channel."""
        if self._fd == _LEFT:
            return
        try:
            fcntl.ioctl(self._fd, DEV_IOC_BACKING_CLOSE, BACKING_ID.pack(number))
        except OSError as error:
            self._undelivered(error)

    def _undelivered(self, error: OSError) -> None:
        """Nobody waits for this answer any more: the connection is gone, or the request is."""
        if self._fd != _LEFT and error.errno not in _NOBODY_WAITS:
            log.error("the kernel does not take an answer: %s", error)
