"""The entries of an open directory, from any offset that was given as one."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.native.state cimport Ids, Thread, Volume


cdef int streams_open(Volume *v) noexcept nogil
cdef void streams_close(Volume *v) noexcept nogil
