"""Open files: opened, created, closed, brought to stable storage."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.native.abi cimport fuse_in_header
from passthrough.native.layout cimport OpenFile
from passthrough.native.state cimport Thread


cdef int file_of(Thread *t, uint64_t fh, uint64_t nodeid, OpenFile **file) noexcept nogil
cdef void release_unopened(Thread *t, uint32_t index) noexcept nogil  # Gone.notes
cdef bint open_for_writing(Thread *t, uint64_t nodeid) noexcept nogil

cdef int do_open(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_create(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_tmpfile(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_flush(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_fsync(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_release(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
