"""Messages to the kernel that answer no request, through /dev/fuse."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.native.state cimport Volume


cdef int attributes_changed(Volume *v, uint64_t nodeid) noexcept nogil
cdef int data_changed(Volume *v, uint64_t nodeid) noexcept nogil
cdef int provoke_request(Volume *v, uint64_t nodeid) noexcept nogil
cdef int provoke_numbered(Volume *v, uint64_t nodeid, uint32_t number) noexcept nogil
