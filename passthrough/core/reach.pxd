"""Paths from the source downwards: to the parent of a directory, and to any file."""

from passthrough.core.state cimport Volume


cdef int open_parent(const Volume *v, int root_fd, int fd) noexcept nogil
cdef int check_beneath(const Volume *v, int root_fd, int fd) noexcept nogil
