"""What can be reached by name from the source downwards."""

from passthrough.native.state cimport Volume


cdef int open_parent(const Volume *v, int root_fd, int fd) noexcept nogil
cdef int check_beneath(const Volume *v, int root_fd, int fd) noexcept nogil
