"""FUSE over io_uring, Linux 6.14: the kernel puts a request into our memory, and takes the answer.

linux/fuse.h, FUSE_IO_URING_CMD_*. The kernel has a queue for each processor, and sends a request to
that of the processor where it was made. In a queue wait *entries*: a place for a header and one
for what a request or answer carries, each given to the kernel by a command. The command ends when a
request lies there; the next one takes the answer from there and waits for another request, so that
a request costs one system call in all. An entry cannot be taken out of its queue again.

Only forgets, interrupts and notifications use /dev/fuse still, and INIT, which must be answered
before. From then on the kernel holds requests back until there is an entry for every processor.

Entries of one queue may come from different rings: each thread makes a ring of its own and gives
one entry. A new entry is given no request that has waited before the entry came, because only an
answer makes the kernel look. So a new thread has the kernel send it something to answer.

If a worker dies, the keeper ends the connection, and the kernel fails all requests, with either
transport. The session does not send FUSE_NOTIFY_RESEND, which has no effect on the requests in
rings (up to Linux 6.18; tried).

transport=auto takes /dev/fuse, because io_uring is slower on some machines, docs/performance.md.
"""

import ctypes
import errno
import mmap
from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Final

from passthrough.session.abi import Notification, Opcode
from passthrough.session.channel import MAX_WRITE, Channel, checked_errno
from passthrough.session.request import MalformedError, Request
from passthrough.session.uring import Ring
from passthrough.session.wire import FIXED, IN_HEADER, NOTIFY_RETRIEVE_OUT, OUT_HEADER

# enum fuse_uring_cmd
_REGISTER: Final = 1
_COMMIT_AND_FETCH: Final = 2

# struct fuse_uring_req_header: the header of a request or answer; the structure that a request
# begins with; flags, commit_id, payload_sz
_OPERATION_AT: Final = 128
_ENTRY: Final = Struct("=QQI12x")
_PAYLOAD_SIZE: Final = Struct("=I")
_ENTRY_AT: Final = 256
_PAYLOAD_SIZE_AT: Final = _ENTRY_AT + 16
_HEADERS_SIZE: Final = _ENTRY_AT + _ENTRY.size
# On pages of its own, as O_DIRECT likes it.
_PAYLOAD_AT: Final = mmap.PAGESIZE
_IOVEC: Final = Struct("=QQ")

_EXTENSION_UNIT: Final = 8
# Far beyond the numbers that the kernel gives, and even, as they are.
_OWN_REQUESTS: Final = 1 << 62
# What lies in the header's place for it. The kernel sends this one's with the rest.
_APART: Final = {opcode: FIXED[opcode] for opcode in FIXED if opcode != Opcode.NOTIFY_REPLY}
# The connection is gone, or has just gone and taken the request along.
THE_END: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.ENOENT})


class RingRequest(Request):
    """A request whose parts lie apart: header, first structure, and the rest, `length` bytes."""

    __slots__ = ()

    def __init__(self, buffer: mmap.mmap) -> None:
        super().__init__(buffer, 0)
        self._fixed_at = _OPERATION_AT
        self._tail_at = _PAYLOAD_AT

    def clear(self) -> None:
        """Hold no request."""
        super().clear()
        self._tail_at = _PAYLOAD_AT

    def done(self) -> None:
        """Keep what there is: the place goes back to the kernel by the number of its request."""

    def decode(self) -> None:
        """Read the header of what has come.

        Raises:
            MalformedError: the rest is shorter or longer than the header says.
        """
        header = IN_HEADER.unpack_from(self._buffer)
        length, self.opcode, self.unique, self.nodeid, self.uid, self.gid, self.pid, more = header
        fixed = _APART.get(self.opcode)
        rest = length - IN_HEADER.size if fixed is None else length - IN_HEADER.size - fixed.size
        self._end = _PAYLOAD_AT + rest - more * _EXTENSION_UNIT
        if rest != self.length or self._end < _PAYLOAD_AT:
            raise MalformedError(f"{self.length} bytes of opcode {self.opcode} should be {rest}")


class RingChannel:
    """One entry of the queue of one processor, of the thread that has made it.

    An answer leaves when that thread asks for the next request. Where there was none, the request's
    own header is taken for one that is wrong, and the kernel ends the request all the same.
    """

    def __init__(self, ring: Ring, fuse_fd: int, queue: int, device: Channel) -> None:
        """Give the kernel an entry for *queue*; *fuse_fd* is borrowed, and INIT has been answered.

        Raises:
            OSError: the kernel does not take it.
        """
        self._ring = ring
        self._device = device
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._buffer = mmap.mmap(-1, _PAYLOAD_AT + MAX_WRITE, flags=flags)
        self._in_hand = False
        memory = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        parts = ctypes.create_string_buffer(
            _IOVEC.pack(memory, _HEADERS_SIZE) + _IOVEC.pack(memory + _PAYLOAD_AT, MAX_WRITE)
        )
        ring.prepare(fuse_fd, _REGISTER, (0, 0, queue), (ctypes.addressof(parts), 2))
        ring.submit()
        if ring.has_result() and (result := ring.wait()) < 0:
            raise OSError(-result, f"the kernel takes no entry for queue {queue} over io_uring")
        ring.prepare(fuse_fd, _COMMIT_AND_FETCH, (0, 0, queue))

    def hurry(self, number: int, inodes: Iterable[int]) -> None:
        """Have requests that wait in the queue of this thread's processor brought.

        The kernel looks for them when an answer comes, and not when an entry does. So there must be
        something to answer: that the kernel sends nothing of the cached pages of a regular file,
        one of *inodes* if it knows one, with a *number* that no other such request has meanwhile.

        Raises:
            OSError: the connection has ended.
        """
        for inode in inodes:
            body = NOTIFY_RETRIEVE_OUT.pack(_OWN_REQUESTS + 2 * number, inode, 0, 0)
            try:
                self._device.notify(Notification.RETRIEVE, (body,))
            except OSError as error:
                if error.errno not in {errno.EINVAL, errno.ENOENT}:  # no regular file, or forgotten
                    raise
            else:
                return

    def open_request(self) -> RingRequest:
        """Give the one place for requests that there is."""
        return RingRequest(self._buffer)

    def receive(self, request: Request) -> bool:
        """Hand the last answer over and wait for a request; False when the connection has ended."""
        if self._in_hand:
            self._ring.repeat(request.unique)
            result = self._ring.submit_and_wait()
        else:
            result = self._ring.wait()
        if result < 0:
            if -result in THE_END:
                return False
            raise OSError(-result, "the kernel does not take an answer over io_uring")
        self._in_hand = True
        (request.length,) = _PAYLOAD_SIZE.unpack_from(self._buffer, _PAYLOAD_SIZE_AT)
        return True

    def reply(self, unique: int, body: bytes) -> None:
        """Answer with success."""
        size = len(body)
        OUT_HEADER.pack_into(self._buffer, 0, OUT_HEADER.size + size, 0, unique)
        self._buffer[_PAYLOAD_AT : _PAYLOAD_AT + size] = body
        _PAYLOAD_SIZE.pack_into(self._buffer, _PAYLOAD_SIZE_AT, size)

    def fail(self, unique: int, number: int) -> None:
        """Answer with an errno."""
        OUT_HEADER.pack_into(self._buffer, 0, OUT_HEADER.size, -checked_errno(number), unique)
        _PAYLOAD_SIZE.pack_into(self._buffer, _PAYLOAD_SIZE_AT, 0)

    def notify(self, code: int, parts: Sequence[bytes]) -> None:
        """Tell the kernel something; there is no other way than by /dev/fuse."""
        self._device.notify(code, parts)

    def open_backing(self, fd: int) -> int:
        """Make the file behind *fd* known to the kernel; by /dev/fuse as well."""
        return self._device.open_backing(fd)

    def close_backing(self, number: int) -> None:
        """Give the id *number* up."""
        self._device.close_backing(number)
