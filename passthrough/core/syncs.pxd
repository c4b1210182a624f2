"""Calls that may wait for a disk: whether another thread takes over before them."""

from libc.stdint cimport int64_t

from passthrough.core.state cimport Thread


cdef enum:
    FAST_SYNCS = 32  # in a row, after which no thread takes over
    SLOW_NS = 250000


cdef int64_t before_sync(Thread *t) noexcept nogil
cdef void after_sync(Thread *t, int64_t began_ns) noexcept nogil
