"""Extended attributes, xattr(7), and which of them pass."""

from libc.stdint cimport uint32_t

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.state cimport Thread


cdef int do_getxattr(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_setxattr(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_listxattr(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil
cdef int do_removexattr(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil
