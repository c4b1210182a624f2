"""Names in directories: found and counted, and what their removal leaves."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.grants cimport Entry
from passthrough.core.layout cimport Inode
from passthrough.core.libc cimport struct_statx
from passthrough.core.state cimport Thread


cdef enum:
    UNDECIDED = 1  # of `grant_known`, beside 0


# Whether the table knows the file of a name, as far as a caller of `find_name` can tell.
cdef enum Expected:
    UNSURE = 0  # as most names before
    IS_KNOWN = 1
    IS_NEW = 2


# The file of a name that is about to be removed.
cdef struct Removal:
    int fd  # or -1


cdef int check_name(const char *name) noexcept nogil
cdef int open_same_mount(int dir_fd, const char *name) noexcept nogil
cdef int find_name(
    Thread *t, const Inode *directory, int dir_fd, const char *name, Expected expected,
    Entry *entry
) noexcept nogil
cdef int grant_known(
    Thread *t, const Inode *directory, const struct_statx *found, uint32_t since, Entry *entry
) noexcept nogil
cdef uint64_t mounted_number(
    Thread *t, const Inode *directory, int dir_fd, const char *name, uint32_t type,
    uint64_t beneath, uint64_t *counted
) noexcept nogil
cdef int find_dot(Thread *t, const Inode *directory, bint parent, Entry *entry) noexcept nogil
cdef int check_reachable(Thread *t, uint64_t nodeid) noexcept nogil

cdef void begin_removal(
    Thread *t, const Inode *directory, int dir_fd, const char *name, Removal *removal
) noexcept nogil
cdef void end_removal(
    Thread *t, const Inode *directory, Removal *removal, bint removed
) noexcept nogil
