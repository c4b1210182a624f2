"""Inodes in use: borrowed, changed, closed."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from passthrough.core.layout cimport (
    Gone, Inode, REFUSALS, RELAXED, RELEASE, Refusal, Tables, load32, milliseconds, store32,
)
from passthrough.core.libc cimport struct_stat
from passthrough.core.state cimport Thread, Volume


# A descriptor of an inode, O_PATH, for as long as it is not given back.
cdef struct Loan:
    int fd
    int kept  # how give_back ends it; inodes.pyx


cdef int inodes_open(Volume *v) noexcept nogil
cdef void inodes_close(Volume *v) noexcept nogil

cdef int borrow(Thread *t, const Inode *inode, Loan *loan) noexcept nogil
cdef int borrow_node(Thread *t, uint64_t nodeid, Inode **inode, Loan *loan) noexcept nogil
cdef void give_back(Thread *t, Loan *loan) noexcept nogil
cdef int changing(Thread *t, uint64_t nodeid, Inode **inode, Loan *loan) noexcept nogil
cdef bint is_stale(Thread *t, Inode *inode, const struct_stat *st) noexcept nogil
cdef bint is_stale_fd(Thread *t, Inode *inode, int fd) noexcept nogil
cdef bint is_hidden(const Volume *v, const Inode *inode) noexcept nogil
cdef int stat_inode(Thread *t, const Inode *inode, struct_stat *st) noexcept nogil

cdef void close_gone(Thread *t, uint64_t nodeid, const Gone *gone) noexcept nogil


cdef inline void note_refusal(Tables *t, uint32_t pid) noexcept nogil:
    """Note that a caller's thread has got ESTALE: the kernel repeats the call, once."""
    cdef Refusal *last = &t.header.refusals[pid % REFUSALS]
    store32(<int32_t *>&last.at_ms, <int32_t>milliseconds(), RELAXED)
    store32(&last.pid, <int32_t>pid, RELEASE)


cdef inline void end_refusal(Tables *t, uint32_t pid) noexcept nogil:
    """Note that a caller's thread has had a call answered otherwise than by ESTALE."""
    cdef int32_t *last = &t.header.refusals[pid % REFUSALS].pid
    if load32(last, RELAXED) == <int32_t>pid:
        store32(last, -1, RELAXED)
