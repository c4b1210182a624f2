"""Names in directories: looked up, forgotten, given and taken away."""

from libc.stdint cimport uint32_t

from passthrough.native.abi cimport fuse_in_header
from passthrough.native.state cimport Thread


cdef int do_lookup(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_forget(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_batch_forget(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil
cdef int do_mknod(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_mkdir(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_symlink(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_link(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_unlink(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_rmdir(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_rename(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_rename2(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_readlink(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
