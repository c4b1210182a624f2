"""/dev/fuse: reads requests into a thread's memory, writes replies."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from passthrough.core.layout cimport RELAXED, load32
from passthrough.core.state cimport Thread, Volume


cdef enum:
    PAGE = 4096
    MAX_DATA = 1 << 20  # of one READ, WRITE or listing: FUSE_MAX_MAX_PAGES pages
    HEADERS = 80  # sizeof(fuse_in_header) + sizeof(fuse_write_in)
    # A request begins so that the data of a WRITE lies on pages of its own, as O_DIRECT likes it.
    REQUEST_AT = PAGE - HEADERS
    REQUEST_ROOM = PAGE + MAX_DATA  # a request may have its names and values in place of data
    REPLY_AT = PAGE  # the header lies right before it
    REPLY_ROOM = PAGE + MAX_DATA + 65536
    PLACE_ROOM = REQUEST_ROOM + REPLY_ROOM
    LONG = 16 * PAGE  # of a rare request, after which pages are given back
    PRESENT = PAGE + LONG  # bytes of a place that have pages before a request is read
    ENDED = 0


# The first page of the memory of all places, which are behind it.
cdef struct Head:
    int32_t places  # taken so far; the first one is of the calls of Python
    int32_t present  # bytes of a place that the longest request so far has taken, or PRESENT


# Memory of a thread's requests and replies: a place, which another process can map.
cdef struct Buffers:
    Head *head
    char *request  # REQUEST_ROOM bytes; the journal comes first
    char *reply  # REPLY_ROOM bytes
    int32_t present  # bytes of `request` that have pages
    uint32_t index  # of the place


cdef Head *map_head(int *memory_fd, long places, int *error) noexcept nogil
cdef int make_buffers(Buffers *b, Head *head, int memory_fd, long index) noexcept nogil
cdef void free_buffers(Buffers *b) noexcept nogil
cdef void make_present(Buffers *b, int32_t size) noexcept nogil
cdef void reply_present(Buffers *b, uint32_t length) noexcept nogil
cdef void give_pages_back(Buffers *b) noexcept nogil
cdef void give_all_pages_back(Buffers *b) noexcept nogil
cdef void use_buffers(Thread *t, const Buffers *b) noexcept nogil
cdef int receive(Thread *t, const Buffers *b) noexcept nogil
cdef bint is_awaited(const Volume *v, uint64_t unique) noexcept nogil
cdef void send(Thread *t, uint32_t length) noexcept nogil


cdef inline void prepare_pages(Buffers *b) noexcept nogil:
    """Have pages for the next request, if it is no longer than all before."""
    if b.present < load32(&b.head.present, RELAXED):
        make_present(b, load32(&b.head.present, RELAXED))
