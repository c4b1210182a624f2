"""Messages to the kernel that answer no request, through /dev/fuse."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.state cimport Volume


cdef int attributes_changed(Volume *v, uint64_t nodeid) noexcept nogil
cdef int data_changed(Volume *v, uint64_t nodeid) noexcept nogil
cdef int drop_pages(Volume *v, uint64_t nodeid) noexcept nogil
cdef int prune(Volume *v, const uint64_t *nodeids, uint32_t count) noexcept nogil
cdef int provoke_request(Volume *v, uint64_t nodeid) noexcept nogil
cdef int provoke_numbered(Volume *v, uint64_t nodeid, uint32_t number) noexcept nogil
