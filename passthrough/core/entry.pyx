"""FUSE over io_uring, Linux 6.14: the kernel puts a request into our memory, and takes the answer.

linux/fuse.h, FUSE_IO_URING_CMD_*. The kernel has a queue for each processor, and sends a request to
that of the processor where it was made. In a queue wait *entries*: a place for a header and one
for what a request or answer carries, each given to the kernel by a command. The command ends when a
request lies there; the next one takes the answer from there and waits for another request, so that
a request costs one system call in all. An entry cannot be taken out of its queue again.

Only forgets, interrupts and notifications use /dev/fuse still, and INIT, which must be answered
before. From then on the kernel holds requests back until there is an entry for every processor.

Entries of one queue may come from different rings: each thread makes a ring of its own and gives
one entry.

The parts of a request lie apart: its header, its first structure, the rest. Header and structure
are copied to right before the rest, so that a handler finds a request as /dev/fuse brings it. If a
request has no rest, its reply is made where the kernel takes it from.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from passthrough.core.abi cimport fuse_in_header, fuse_out_header
from passthrough.core.device cimport MAX_DATA, PAGE, REPLY_AT, REPLY_ROOM, Buffers
from passthrough.core.libc cimport (
    ECONNABORTED, EIO, ENODEV, ENOENT, ENOTCONN, iovec,
)
from passthrough.core.loop cimport OUT_HEADER
from passthrough.core.state cimport Thread
from passthrough.core.uring cimport (
    close_ring, has_result, open_ring, prepare, submit, submit_and_wait, wait_result,
)

cdef enum:
    REGISTER = 1  # enum fuse_uring_cmd
    COMMIT_AND_FETCH = 2
    OPERATION_AT = 128
    OPERATION_ROOM = 128
    HEADERS_SIZE = 288


cdef struct EntryInOut:  # struct fuse_uring_ent_in_out
    uint64_t flags
    uint64_t commit_id
    uint32_t payload_size
    uint32_t padding
    uint64_t reserved


# struct fuse_uring_req_header
cdef struct Headers:
    char in_out[OPERATION_AT]
    char operation[OPERATION_ROOM]
    EntryInOut entry


cdef int open_place(Place *p, Buffers *buffers, int fuse_fd, int queue) noexcept nogil:
    """Give the kernel an entry for a queue, in memory that is 0; INIT has been answered."""
    cdef iovec parts[2]
    cdef int result = open_ring(&p.ring)
    if result < 0:
        return result
    p.buffers = buffers
    parts[0].iov_base = buffers.request
    parts[0].iov_len = HEADERS_SIZE
    parts[1].iov_base = buffers.request + PAGE
    parts[1].iov_len = MAX_DATA
    prepare(&p.ring, fuse_fd, REGISTER, queue, parts, 2)
    result = submit(&p.ring)
    if result == 0 and has_result(&p.ring):
        result = min(wait_result(&p.ring), 0)
    if result < 0:
        close_ring(&p.ring)
        return result
    prepare(&p.ring, fuse_fd, COMMIT_AND_FETCH, queue, NULL, 0)
    return 0


cdef void close_place(Place *p) noexcept nogil:
    """Close the ring of an entry, after the connection has ended."""
    close_ring(&p.ring)


cdef int receive_at(Thread *t, Place *p) noexcept nogil:
    """Hand the last answer over and wait for a request; return its bytes, 0 at the end, -errno."""
    cdef Headers *headers = <Headers *>p.buffers.request
    cdef int result
    if p.in_hand:
        p.ring.command.own[1] = headers.entry.commit_id
        result = submit_and_wait(&p.ring)
    else:
        result = wait_result(&p.ring)
    if result == -ENOTCONN or result == -ECONNABORTED or result == -ENODEV or result == -ENOENT:
        return 0
    if result < 0:
        return result
    p.in_hand = True
    return _assemble(t, p, headers)


cdef uint32_t _first_size(const fuse_in_header *given, uint32_t rest) noexcept nogil:
    """Return the bytes of a request's first structure, also if its opcode is not served.

    `rest` is the size of what follows. The sum is the length in the header. If it is not, return 0,
    so that the loop finds the length wrong.
    """
    cdef int64_t size = <int64_t>given.len - <int64_t>sizeof(fuse_in_header) - rest
    return <uint32_t>size if 0 <= size <= OPERATION_ROOM else 0


cdef int _assemble(Thread *t, Place *p, const Headers *headers) noexcept nogil:
    """Put header and structure before the rest of a request."""
    cdef const fuse_in_header *given = <const fuse_in_header *>headers.in_out
    cdef uint32_t rest = headers.entry.payload_size
    cdef uint32_t fixed = _first_size(given, rest)
    cdef char *start = p.buffers.request + PAGE - fixed - sizeof(fuse_in_header)
    if rest > MAX_DATA:
        return -EIO
    memcpy(start, given, sizeof(fuse_in_header))
    memcpy(start + sizeof(fuse_in_header), headers.operation, fixed)
    t.request = <const fuse_in_header *>start
    if rest:
        t.out = p.buffers.reply + REPLY_AT
        t.out_size = REPLY_ROOM - REPLY_AT
    else:
        t.out = p.buffers.request + PAGE
        t.out_size = MAX_DATA
    return <int>(sizeof(fuse_in_header) + fixed + rest)


cdef void reply_at(Thread *t, Place *p, uint32_t length) noexcept nogil:
    """Put a reply of `length` bytes where the kernel takes it from.

    Without a reply the request's own header is taken for one that is wrong, and the kernel ends the
    request all the same.
    """
    cdef Headers *headers = <Headers *>p.buffers.request
    cdef fuse_out_header *out = <fuse_out_header *>headers.in_out
    if not length:
        return
    memcpy(headers.in_out, t.out - OUT_HEADER, OUT_HEADER)
    length -= OUT_HEADER
    if length > MAX_DATA:
        out.len, out.error, length = OUT_HEADER, -EIO, 0
    if t.out != p.buffers.request + PAGE:
        memcpy(p.buffers.request + PAGE, t.out, length)
    headers.entry.payload_size = length
