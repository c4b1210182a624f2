"""Files as lookups find them, counted."""

from libc.stdint cimport uint32_t

from passthrough.core.layout cimport Found, Granted, Tables
from passthrough.core.libc cimport struct_stat
from passthrough.core.state cimport Thread


# A file as a name has led to it, counted as one lookup.
cdef struct Entry:
    struct_stat st
    Granted granted
    bint submount  # the root of another mount, which the volume shows


cdef void describe(Found *file, const struct_stat *st, uint32_t place, int fd) noexcept nogil
cdef int grant_fd(Thread *t, int fd, uint32_t place, Entry *entry) noexcept nogil
cdef bint pin_fd(Tables *t, int fd, uint32_t place) noexcept nogil
