"""Names in directories: found and counted, and what their removal leaves."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.native.grants cimport Entry
from passthrough.native.layout cimport Inode
from passthrough.native.libc cimport struct_statx
from passthrough.native.state cimport Thread


cdef enum:
    UNDECIDED = 1  # of `grant_known`, beside 0


# The file of a name that is about to be removed.
cdef struct Removal:
    int fd  # or -1


cdef int check_name(const char *name) noexcept nogil
cdef int open_same_mount(int dir_fd, const char *name) noexcept nogil
cdef int find_name(
    Thread *t, const Inode *directory, int dir_fd, const char *name, Entry *entry
) noexcept nogil
cdef int grant_known(
    Thread *t, const Inode *directory, const struct_statx *found, uint32_t since, Entry *entry
) noexcept nogil
cdef int find_dot(Thread *t, const Inode *directory, bint parent, Entry *entry) noexcept nogil
cdef int check_reachable(Thread *t, uint64_t nodeid) noexcept nogil

cdef void begin_removal(Thread *t, int dir_fd, const char *name, Removal *removal) noexcept nogil
cdef void end_removal(
    Thread *t, const Inode *directory, Removal *removal, bint removed
) noexcept nogil
