"""Directory streams: opened, read, brought to stable storage, closed."""

from libc.stdint cimport uint32_t

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.state cimport Thread


cdef int do_opendir(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_readdir(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_readdirplus(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil
cdef int do_fsyncdir(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_releasedir(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil
