"""Locks of bytes on the host, each owner's on an open file description of its own; flock(2)."""

from libc.stdint cimport uint64_t

from passthrough.core.held cimport Lock
from passthrough.core.lock_table cimport LockTable, Target
from passthrough.core.waits cimport Wait


cdef int conflict(
    LockTable *t, const Target *target, uint64_t owner, const Lock *asked, Lock *found
) noexcept nogil
cdef int take_lock(
    LockTable *t, const Target *target, uint64_t owner, const Lock *lock, Wait *wait
) noexcept nogil
cdef int wait_lock(
    LockTable *t, const Target *target, uint64_t owner, const Lock *lock, Wait *wait
) noexcept nogil
cdef int drop_lock(
    LockTable *t, uint64_t nodeid, uint64_t owner, const Lock *lock
) noexcept nogil
cdef int whole_lock(
    LockTable *t, const Target *target, int operation, Wait *wait
) noexcept nogil
