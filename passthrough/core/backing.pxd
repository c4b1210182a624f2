"""FUSE passthrough: the host's files that the kernel reads and writes by itself."""

from libc.stdint cimport int32_t, uint64_t

from passthrough.core.libc cimport struct_stat
from passthrough.core.state cimport Thread, Volume


cdef int32_t open_backing(
    Thread *t, int fd, const struct_stat *st, bint unreserved
) noexcept nogil
cdef void close_backing(Volume *v, int32_t backing_id) noexcept nogil
cdef int try_backing(Thread *t) noexcept nogil
cdef int new_backing(const Volume *v) noexcept nogil
cdef void note_privileges(Thread *t, uint64_t nodeid) noexcept nogil
cdef bint may_have_lost_privileges(Thread *t, uint64_t nodeid) noexcept nogil
cdef bint passes(Thread *t, uint64_t nodeid) noexcept nogil
