"""An entry of a queue of FUSE over io_uring: the place of one request at a time."""

from libc.stdint cimport uint32_t

from passthrough.core.device cimport Buffers
from passthrough.core.state cimport Thread
from passthrough.core.uring cimport Ring


cdef struct Place:
    Ring ring
    Buffers *buffers
    bint in_hand


cdef int open_place(Place *p, Buffers *buffers, int fuse_fd, int queue) noexcept nogil
cdef void close_place(Place *p) noexcept nogil
cdef int receive_at(Thread *t, Place *p) noexcept nogil
cdef void reply_at(Thread *t, Place *p, uint32_t length) noexcept nogil
