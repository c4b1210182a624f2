"""/dev/fuse: reads requests into a thread's memory, writes replies."""

from libc.stdint cimport uint32_t

from passthrough.native.state cimport Thread, Volume


cdef enum:
    PAGE = 4096
    MAX_DATA = 1 << 20  # of one READ, WRITE or listing: FUSE_MAX_MAX_PAGES pages
    HEADERS = 80  # sizeof(fuse_in_header) + sizeof(fuse_write_in)
    # A request begins so that the data of a WRITE lies on pages of its own, as O_DIRECT likes it.
    REQUEST_AT = PAGE - HEADERS
    REQUEST_ROOM = PAGE + MAX_DATA  # a request may have its names and values in place of data
    REPLY_AT = PAGE  # the header lies right before it
    REPLY_ROOM = PAGE + MAX_DATA + 65536
    LONG = 16 * PAGE  # of a rare request, after which pages are given back
    ENDED = 0


# Memory of a thread's requests and replies.
cdef struct Buffers:
    char *request  # REQUEST_ROOM bytes, in memory that another process can map
    char *reply  # REPLY_ROOM bytes


cdef int make_buffers(Buffers *b, int memory_fd, long index) noexcept nogil
cdef void free_buffers(Buffers *b) noexcept nogil
cdef void give_pages_back(Buffers *b) noexcept nogil
cdef void use_buffers(Thread *t, const Buffers *b) noexcept nogil
cdef int receive(Thread *t, const Buffers *b) noexcept nogil
cdef void send(Thread *t, uint32_t length) noexcept nogil
