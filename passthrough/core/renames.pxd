"""Names in directories: exchanged for others."""

from libc.stdint cimport uint32_t

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.state cimport Thread


cdef int do_rename(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_rename2(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
