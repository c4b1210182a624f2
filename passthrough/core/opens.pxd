"""OPEN, CREATE, TMPFILE: a regular file is opened for a caller."""

from libc.stdint cimport uint32_t

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.state cimport Thread


cdef int do_open(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_create(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_tmpfile(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
