"""Inodes in use: borrowed descriptors, lookups of names, what a removal leaves."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.native.layout cimport Gone, Granted, Inode
from passthrough.native.libc cimport struct_stat
from passthrough.native.state cimport Thread, Volume


# A descriptor of an inode, O_PATH, for as long as it is not given back.
cdef struct Loan:
    int fd
    int kept  # how give_back ends it; inodes.pyx


# A file as a name has led to it, counted as one lookup.
cdef struct Entry:
    struct_stat st
    Granted granted
    bint submount  # the root of another mount, which the volume shows


# The file of a name that is about to be removed.
cdef struct Removal:
    int fd  # or -1


cdef int inodes_open(Volume *v) noexcept nogil
cdef void inodes_close(Volume *v) noexcept nogil

cdef int borrow(Thread *t, const Inode *inode, Loan *loan) noexcept nogil
cdef int borrow_node(Thread *t, uint64_t nodeid, Inode **inode, Loan *loan) noexcept nogil
cdef void give_back(Thread *t, Loan *loan) noexcept nogil
cdef int changing(Thread *t, uint64_t nodeid, Inode **inode, Loan *loan) noexcept nogil
cdef bint is_hidden(const Volume *v, const Inode *inode) noexcept nogil
cdef int stat_inode(Thread *t, const Inode *inode, struct_stat *st) noexcept nogil

cdef int check_name(const char *name) noexcept nogil
cdef int open_same_mount(int dir_fd, const char *name) noexcept nogil
cdef int find_name(
    Thread *t, const Inode *directory, int dir_fd, const char *name, Entry *entry
) noexcept nogil
cdef int find_dot(Thread *t, const Inode *directory, bint parent, Entry *entry) noexcept nogil
cdef int grant_fd(Thread *t, int fd, uint32_t place, Entry *entry) noexcept nogil
cdef void forget_lookups(Thread *t, uint64_t nodeid, uint64_t count) noexcept nogil
cdef void close_gone(Thread *t, uint64_t nodeid, const Gone *gone) noexcept nogil
cdef int check_reachable(Thread *t, uint64_t nodeid) noexcept nogil

cdef void begin_removal(Thread *t, int dir_fd, const char *name, Removal *removal) noexcept nogil
cdef void end_removal(
    Thread *t, const Inode *directory, Removal *removal, bint removed
) noexcept nogil
cdef void pin_fd(Thread *t, int fd, uint32_t place) noexcept nogil
