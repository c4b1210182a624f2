"""Descriptors and ids of FUSE passthrough that a dead worker had, and no table has."""

from libc.stdint cimport int32_t

from passthrough.core.state cimport Volume


cdef int find_lost(Volume *v, const int *kept, int kept_count, int **lost) noexcept nogil
cdef dict open_beside(Volume *v)
cdef list still_open(dict noted)
cdef void close_ids(Volume *v, int32_t *ids, int count, int32_t above) noexcept nogil
