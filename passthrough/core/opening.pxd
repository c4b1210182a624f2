"""Chooses the flags of a caller's open(2) that reach the host, and opens existing files."""

from libc.stdint cimport uint32_t

from passthrough.core.layout cimport Inode
from passthrough.core.state cimport Options, Thread, Volume


cdef enum:
    FOR_EXECUTION = 0x20  # __FMODE_EXEC of linux/fs.h, which the kernel adds for execve(2)


cdef int created_flags(const Options *o, int flags) noexcept nogil
cdef int unnamed_flags(const Options *o, int flags) noexcept nogil
cdef int request_flags(const Options *o, int flags) noexcept nogil
cdef bint opening_changes(int flags) noexcept nogil
cdef int open_path(const char *path, int flags) noexcept nogil
cdef int open_o_path(const Volume *v, int fd) noexcept nogil
cdef int reopen(Thread *t, const Inode *inode, uint32_t type, int flags) noexcept nogil
cdef int reopen_lent(Thread *t, int lent, int flags) noexcept nogil
