"""Memory that workers of a volume share."""

from libc.stdint cimport uint64_t


cdef int make_memory(const char *name, uint64_t size) noexcept nogil
cdef void *map_memory(int *fd, const char *name, uint64_t size, int *error) noexcept nogil
