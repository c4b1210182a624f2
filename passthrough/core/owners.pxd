"""Checks the owners of files."""

from libc.stdint cimport uint32_t

from passthrough.core.libc cimport struct_stat
from passthrough.core.state cimport Thread, Volume


cdef int check_change(const Volume *v, const struct_stat *st) noexcept nogil
cdef int check_open(const Volume *v, const struct_stat *st, int flags) noexcept nogil
cdef int check_named(Thread *t, int dir_fd, const char *name) noexcept nogil
cdef int check_node(const Volume *v, uint32_t mode) noexcept nogil
cdef bint allows(Thread *t, const struct_stat *st, uint32_t mask) noexcept nogil
cdef int keeps_sgid(Thread *t, const struct_stat *st, bint checked) noexcept nogil  # 1, 0, -errno
