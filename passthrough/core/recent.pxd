"""Inodes that are held by file handle and were used last, kept open."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from passthrough.core.state cimport Volume


cdef int recent_open(Volume *v) noexcept nogil
cdef void recent_close(Volume *v) noexcept nogil

cdef int find_recent(Volume *v, uint64_t nodeid, int *use) noexcept nogil
cdef int keep_recent(Volume *v, uint64_t nodeid, int fd, int *use) noexcept nogil
cdef void leave_recent(Volume *v, int use) noexcept nogil
cdef bint is_nameless(int fd) noexcept nogil
cdef void drop_nameless(Volume *v) noexcept nogil
cdef void drop_recent(Volume *v, uint64_t nodeid) noexcept nogil
