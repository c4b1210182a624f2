"""Memory of the tables: made, mapped, recovered after a death, and given back."""

from libc.stdint cimport uint64_t

from passthrough.core.layout cimport Found, Limits, Tables


cdef Tables *create(
    const Limits *limits, uint64_t mount_id, int mount_fd, const Found *root, int *error
) noexcept nogil
cdef Tables *adopt(int fd, int *error) noexcept nogil
cdef bint is_head_sound(const Tables *t) noexcept nogil
cdef void detach(Tables *t) noexcept nogil
cdef void recover(Tables *t) noexcept nogil
cdef void trim(Tables *t) noexcept nogil
cdef void rebuild_hash(Tables *t) noexcept nogil
