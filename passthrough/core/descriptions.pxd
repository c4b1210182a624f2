"""The open file description that each owner of locks has of each file that it locks."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.held cimport Lock
from passthrough.core.libc cimport struct_flock
from passthrough.core.lock_table cimport LockTable, Owned, Target


cdef void as_host(const Lock *lock, struct_flock *out) noexcept nogil
cdef int set_lock(int fd, const Lock *lock) noexcept nogil
cdef int clear_locks(int fd) noexcept nogil
cdef void remember_now(LockTable *t, uint64_t nodeid, int fd) noexcept nogil

cdef void leave(LockTable *t, Owned *owned) noexcept nogil
cdef int use_owned(
    LockTable *t, const Target *target, uint64_t owner, const Lock *lock, Owned **out,
    bint *covered, uint32_t *changes
) noexcept nogil
cdef void drop_owner(LockTable *t, uint64_t nodeid, uint64_t owner) noexcept nogil
cdef void drop_opened(LockTable *t, uint64_t nodeid, uint64_t fh) noexcept nogil
