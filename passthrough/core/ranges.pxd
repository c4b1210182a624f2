"""Parts of open files: allocated, found, copied."""

from libc.stdint cimport uint32_t

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.state cimport Thread


cdef int do_fallocate(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil
cdef int do_lseek(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_copy_file_range(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil
cdef int do_copy_file_range_64(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil
