"""Data of open files: read and written."""

from libc.stdint cimport uint32_t

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.state cimport Thread


cdef enum:
    MAX_DATA = 1 << 20  # bytes of a READ or WRITE, as INIT allows; Linux's FUSE_MAX_MAX_PAGES


cdef int do_read(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_write(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
