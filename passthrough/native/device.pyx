"""/dev/fuse as the transport: one read(2) brings a request, one write(2) takes a reply.

Any number of threads may use the descriptor at once, each with memory of its own. The descriptor is
never cloned: when a clone is closed, the kernel fails the requests that the clone holds.

Requests lie in one memfd for all threads, at a place for each, so that a process which takes over
can map what its predecessor had in hand. Replies are made in private memory.
"""

from libc.stdint cimport uint32_t

from passthrough.native.abi cimport fuse_in_header
from passthrough.native.libc cimport (
    EAGAIN, ECONNABORTED, EINTR, ENODEV, ENOENT, ENOMEM, EPERM, MADV_DONTNEED, MADV_REMOVE,
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE,
    errno, madvise, mmap, munmap, read, ssize_t, write,
)
from passthrough.native.loop cimport OUT_HEADER
from passthrough.native.rare cimport report
from passthrough.native.state cimport REPORT_UNTAKEN_ANSWER, Thread


cdef int make_buffers(Buffers *b, int memory_fd, long index) noexcept nogil:
    """Map the memory of the thread with this index; pages that nothing has filled take none."""
    cdef void *request = mmap(
        NULL, REQUEST_ROOM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory_fd,
        index * REQUEST_ROOM,
    )
    cdef void *reply
    if request == MAP_FAILED:
        return -errno
    reply = mmap(
        NULL, REPLY_ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
    )
    if reply == MAP_FAILED:
        munmap(request, REQUEST_ROOM)
        return -ENOMEM
    b.request = <char *>request
    b.reply = <char *>reply
    return 0


cdef void free_buffers(Buffers *b) noexcept nogil:
    """Unmap the memory of a thread that serves no more."""
    if b.request != NULL:
        give_pages_back(b)
        munmap(b.request, REQUEST_ROOM)
        munmap(b.reply, REPLY_ROOM)
    b.request = b.reply = NULL


cdef void give_pages_back(Buffers *b) noexcept nogil:
    """Return the pages behind the first ones, which a long request or reply has filled."""
    madvise(b.request + PAGE, REQUEST_ROOM - PAGE, MADV_REMOVE)
    madvise(b.reply + 2 * PAGE, REPLY_ROOM - 2 * PAGE, MADV_DONTNEED)


cdef void use_buffers(Thread *t, const Buffers *b) noexcept nogil:
    """Have a thread serve what is in this memory."""
    t.request = <const fuse_in_header *>(b.request + REQUEST_AT)
    t.out = b.reply + REPLY_AT
    t.out_size = REPLY_ROOM - REPLY_AT


cdef int receive(Thread *t, const Buffers *b) noexcept nogil:
    """Wait for a request; return its bytes, ENDED, or -errno if the connection is broken.

    The end is an unmount everywhere (ENODEV) or an abort, which a read may report by ECONNABORTED.
    """
    cdef ssize_t received
    cdef int fd, error
    while True:
        fd = t.volume.device_fd
        if fd < 0:
            return ENDED
        received = read(fd, b.request + REQUEST_AT, REQUEST_ROOM - REQUEST_AT)
        if received >= 0:
            return <int>received
        error = errno
        if error == ENODEV or error == ECONNABORTED or t.volume.device_fd < 0:
            return ENDED
        # ENOENT: the request was taken back before it was read.
        if error != ENOENT and error != EINTR and error != EAGAIN:
            return -error


cdef void send(Thread *t, uint32_t length) noexcept nogil:
    """Write a reply of `length` bytes, which begins OUT_HEADER bytes before `t.out`."""
    cdef int fd = t.volume.device_fd
    cdef int error
    if fd < 0 or write(fd, t.out - OUT_HEADER, length) >= 0:
        return
    error = errno
    # The connection is gone, or nothing waits for this reply any more.
    if error != ENOENT and error != ENODEV and error != ECONNABORTED and error != EPERM:
        report(t.volume, REPORT_UNTAKEN_ANSWER, error, NULL)
