"""System calls on the inode behind an O_PATH descriptor; each returns -errno if it fails."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.layout cimport Inode
from passthrough.core.libc cimport ssize_t, timespec
from passthrough.core.state cimport Thread, Volume


# The calls of this kernel that need no path.
cdef enum:
    TIMES = 1
    MODE = 2
    ATTRIBUTES = 4


cdef int set_times(const Volume *v, int fd, const timespec *times) noexcept nogil
cdef int set_mode(const Volume *v, int fd, uint32_t mode) noexcept nogil
cdef int set_owner(int fd, uint32_t uid, uint32_t gid) noexcept nogil
cdef int set_size(const Volume *v, int fd, uint64_t size) noexcept nogil
cdef int may_access(int fd, int mask) noexcept nogil  # 1, 0, -errno
cdef ssize_t read_attributes(
    Thread *t, const Inode *inode, int fd, const char *name, char *out, size_t size
) noexcept nogil
cdef int use_calls(int calls) noexcept nogil
