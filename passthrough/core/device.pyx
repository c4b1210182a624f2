"""/dev/fuse as the transport: one read(2) brings a request, one write(2) takes a reply.

Any number of threads may use the descriptor at once, each with memory of its own. The descriptor is
never cloned: when a clone is closed, the kernel fails the requests that the clone holds.

Requests and replies lie in one memfd for all threads, at a place for each. If the process is
killed, its successor finds there what was in hand, and answers it by the same descriptor.

**Pages.** A thread that is killed inside of read(2) still copies the request, but the kernel gives
it no new page for that: if one is missing, the caller gets EIO (fuse_copy_fill(), fs/fuse/dev.c).
So the pages of a place are there before a request is read: for the longest WRITE, or only 64 KiB if
the kernel reads and writes by itself, and more once a longer request has come. A BATCH_FORGET may
be longer. It has no answer: if its thread is killed just then, the kernel has forgotten inodes that
the tables keep. The pages are locked in memory as far as the limits allow.

If the copy fails all the same, the request's number may be there already. So a successor asks the
kernel whether the caller still waits (`is_awaited`), unless the journal tells of the request.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from passthrough.core.abi cimport FUSE_BATCH_FORGET, fuse_in_header, fuse_out_header
from passthrough.core.journal cimport Journal, end_request, note_reply
from passthrough.core.layout cimport RELAXED, add32, load32, store32
from passthrough.core.libc cimport (
    EAGAIN, ECONNABORTED, EINTR, ENODEV, ENOENT, EPERM, MADV_REMOVE, MAP_FAILED, MAP_NORESERVE,
    MAP_SHARED, PROT_READ, PROT_WRITE, errno, madvise, mlock, mmap, munlock, munmap, read, ssize_t,
    write,
)
from passthrough.core.loop cimport OUT_HEADER
from passthrough.core.rare cimport report
from passthrough.core.shared cimport map_memory
from passthrough.core.state cimport REPORT_UNTAKEN_ANSWER, Thread, Volume
from passthrough.core.steps cimport ANSWERED, SENT, TAKEN, step

cdef enum:
    MADV_POPULATE_WRITE = 23  # Linux 5.14
    INTERRUPTS = 1  # FUSE_INT_REQ_BIT: the number of an INTERRUPT, beside that of its request


cdef Head *map_head(int *memory_fd, long places, int *error) noexcept nogil:
    """Map the first page of memory that has room for so many places.

    Make the memory if `memory_fd` is -1. If NULL is returned, `error` has the errno.
    """
    cdef uint64_t size = PAGE + places * PLACE_ROOM
    cdef void *start = map_memory(memory_fd, "passfs-requests", size, error)
    cdef Head *head = <Head *>start
    if start == NULL:
        return NULL
    munmap(<char *>start + PAGE, size - PAGE)
    if not head.places:
        head.places = 1
        head.present = PRESENT
    return head


cdef int make_buffers(Buffers *b, Head *head, int memory_fd, long index) noexcept nogil:
    """Map the place with this index; pages that nothing has filled take no memory."""
    cdef void *place = mmap(
        NULL, PLACE_ROOM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory_fd,
        PAGE + index * PLACE_ROOM,
    )
    if place == MAP_FAILED:
        return -errno
    b.head = head
    b.request = <char *>place
    b.reply = b.request + REQUEST_ROOM
    b.present = 0
    b.index = <uint32_t>index
    return 0


cdef void free_buffers(Buffers *b) noexcept nogil:
    """Unmap the memory of a thread that serves no more."""
    if b.request != NULL:
        give_all_pages_back(b)
        munmap(b.request, PLACE_ROOM)
    b.request = b.reply = NULL


cdef void make_present(Buffers *b, int32_t size) noexcept nogil:
    """Allocate the pages of the first `size` bytes of a place; these bytes keep their content."""
    size = min(size, <int32_t>REQUEST_ROOM)
    mlock(b.request, size)
    if madvise(b.request, size, MADV_POPULATE_WRITE) < 0:
        _touch(b.request, <uint32_t>size)
    b.present = size


cdef void reply_present(Buffers *b, uint32_t length) noexcept nogil:
    """Map the pages of a reply that another process has made: a killed thread maps none itself."""
    _touch(b.reply, REPLY_AT - OUT_HEADER + length)


cdef void _touch(char *start, uint32_t size) noexcept nogil:
    """Write to each page a value that the page already has."""
    cdef uint32_t at = 0
    while at < size:
        add32(<int32_t *>(start + at), 0, RELAXED)
        at += PAGE


cdef void give_pages_back(Buffers *b) noexcept nogil:
    """Return the pages that only a long request or reply needs."""
    cdef int32_t kept = max(b.present, <int32_t>PAGE)
    kept = (kept + PAGE - 1) // PAGE * PAGE
    madvise(b.request + kept, REQUEST_ROOM - kept, MADV_REMOVE)
    madvise(b.reply + 2 * PAGE, REPLY_ROOM - 2 * PAGE, MADV_REMOVE)


cdef void give_all_pages_back(Buffers *b) noexcept nogil:
    """Return the pages of a place behind the first ones; nothing may be in hand there."""
    munlock(b.request, REQUEST_ROOM)
    b.present = 0
    give_pages_back(b)


cdef void use_buffers(Thread *t, const Buffers *b) noexcept nogil:
    """Have a thread serve what is in this memory."""
    t.request = <const fuse_in_header *>(b.request + REQUEST_AT)
    t.journal = <Journal *>b.request
    t.out = b.reply + REPLY_AT
    t.out_size = REPLY_ROOM - REPLY_AT
    t.row = b.index


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
            step(t, TAKEN)
            if 0 < b.present < REQUEST_AT + received and t.request.opcode != FUSE_BATCH_FORGET:
                _note_long(b, REQUEST_AT + <int32_t>received)
            return <int>received
        error = errno
        if error == ENODEV or error == ECONNABORTED or t.volume.device_fd < 0:
            return ENDED
        # ENOENT: the request was taken back before it was read.
        if error != ENOENT and error != EINTR and error != EAGAIN:
            return -error


cdef void _note_long(const Buffers *b, int32_t size) noexcept nogil:
    """Note that a request of another length may come; if two threads note one, either is kept."""
    size = (size + PAGE - 1) // PAGE * PAGE
    if size > load32(&b.head.present, RELAXED):
        store32(&b.head.present, size, RELAXED)


cdef bint is_awaited(const Volume *v, uint64_t unique) noexcept nogil:
    """Return whether the kernel waits for the answer to a request that it has sent.

    The kernel gets an answer to an INTERRUPT of the request. It looks for the request, and fails
    with ENOENT if there is none. Otherwise the kernel ignores the answer, because its error is
    neither ENOSYS nor EAGAIN (fuse_dev_do_write(), fs/fuse/dev.c).
    """
    cdef fuse_out_header probe
    probe.len = sizeof(probe)
    probe.error = 0
    probe.unique = unique | INTERRUPTS
    return write(v.device_fd, &probe, sizeof(probe)) >= 0 or errno != ENOENT


cdef void send(Thread *t, uint32_t length) noexcept nogil:
    """Write a reply of `length` bytes, which begins OUT_HEADER bytes before `t.out`."""
    cdef int fd = t.volume.device_fd
    cdef int error = 0
    note_reply(t.journal, length)
    step(t, ANSWERED)
    if fd >= 0 and write(fd, t.out - OUT_HEADER, length) < 0:
        error = errno
    step(t, SENT)
    end_request(t.journal)
    # With these errors the connection is gone, or nothing waits for this reply any more.
    if error and error != ENOENT and error != ENODEV and error != ECONNABORTED and error != EPERM:
        report(t.volume, REPORT_UNTAKEN_ANSWER, error, NULL)
