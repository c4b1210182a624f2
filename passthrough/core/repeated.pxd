"""Requests that are served once more: what the dead worker has done of them."""

from libc.stdint cimport int64_t, uint32_t

from passthrough.core.layout cimport Inode
from passthrough.core.libc cimport dev_t, mode_t, ssize_t, struct_stat
from passthrough.core.state cimport Thread


cdef int find_made(
    Thread *t, const Inode *directory, int dir_fd, const char *name, mode_t type, dev_t device
) noexcept nogil
cdef bint was_made(
    Thread *t, const Inode *directory, int dir_fd, const char *name, mode_t type, dev_t device
) noexcept nogil
cdef bint was_made_for(
    Thread *t, const Inode *directory, int dir_fd, const char *name, const char *target
) noexcept nogil
cdef bint was_linked(
    Thread *t, const Inode *directory, int dir_fd, const char *name, int linked_fd
) noexcept nogil
cdef bint is_another(
    Thread *t, const Inode *directory, int dir_fd, const char *name
) noexcept nogil
cdef bint was_removed(Thread *t, const Inode *directory, int dir_fd) noexcept nogil
cdef bint was_moved(
    Thread *t, const Inode *directory, int dir_fd, const char *name
) noexcept nogil
cdef bint were_changed(
    Thread *t, int fd, const char *name, int new_fd, const char *new_name, uint32_t flags
) noexcept nogil
cdef bint had_attribute(Thread *t, const char *path, const char *name) noexcept nogil
cdef bint has_value(
    Thread *t, const char *path, const char *name, const char *value, size_t size
) noexcept nogil
cdef int64_t size_before(Thread *t, int64_t size) noexcept nogil
cdef ssize_t appended(
    Thread *t, int fd, int64_t before, int64_t size, const char *data, size_t length
) noexcept nogil
