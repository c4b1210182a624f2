"""The table of locks: owners, their locks and descriptors, and owners that wait for others."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from passthrough.core.held cimport Held, Lock
from passthrough.core.lock_records cimport Record, Records
from passthrough.core.libc cimport pthread_mutex_t, struct_stat
from passthrough.core.state cimport Volume


cdef enum:
    BUCKETS = 512
    WAITER_BUCKETS = 64
    REMEMBERED = 1024  # files of which the state at their last lock is known


# An open file by which an owner locks.
cdef struct Target:
    uint64_t nodeid
    uint64_t fh
    int fd
    const Volume *volume


# The locks of one owner on one file, on an open file description for them alone.
cdef struct Owned:
    uint64_t nodeid
    uint64_t owner
    Owned *chain  # of the bucket
    Owned *next  # of the file, in the order in which they came
    Owned *previous
    LockedFile *file  # NULL: no longer in the table
    int fd
    bint writable
    uint32_t users  # the table, and each thread that has found it; the last one closes `fd`
    uint32_t changes  # of `held`
    uint32_t pid
    bint wrote  # a lock for writing was held since the file's state was remembered
    Record *record  # NULL: no longer in the table
    Held held  # changed by `note_lock`


# The state of a file: others have changed the file if this has changed.
cdef struct State:
    int64_t modified_s
    int64_t changed_s
    int64_t modified_ns
    int64_t changed_ns
    int64_t size


# Is there while an owner has a description of it, or its state is known.
cdef struct LockedFile:
    uint64_t nodeid
    LockedFile *chain
    Owned *first
    Owned *last
    bint known
    State state
    LockedFile *newer  # of those with a known state
    LockedFile *older


# A thread that waits for a lock of bytes; in memory of that thread.
cdef struct Waiter:
    uint64_t owner
    uint64_t nodeid
    Lock lock
    Waiter *next
    Waiter *ahead
    uint64_t reached


cdef struct LockTable:
    pthread_mutex_t mutex
    Records records
    uint32_t count  # descriptions in the table
    uint32_t known  # files of which the state is known
    LockedFile *newest
    LockedFile *oldest
    uint64_t searches  # for owners that wait for one another
    Owned *owners[BUCKETS]
    LockedFile *files[BUCKETS]
    Waiter *waiters[WAITER_BUCKETS]


cdef int begin_table(LockTable *t, int *fd) noexcept nogil
cdef int recover_table(LockTable *t) noexcept nogil
cdef void end_table(LockTable *t) noexcept nogil

cdef Owned *find_owned(LockTable *t, uint64_t nodeid, uint64_t owner) noexcept nogil
cdef bint add_use(LockTable *t, Owned *owned, uint64_t fh) noexcept nogil
cdef bint make_room(Owned *owned) noexcept nogil
cdef void note_lock(LockTable *t, Owned *owned, const Lock *lock) noexcept nogil
cdef Owned *make_owned(int fd, bint writable) noexcept nogil
cdef bint put_in(LockTable *t, Owned *made, Owned *before) noexcept nogil
cdef bint take_out(LockTable *t, Owned *owned) noexcept nogil
cdef bint drop_use(Owned *owned) noexcept nogil
cdef void close_owned(Owned *owned) noexcept nogil
cdef Owned *opened_by(LockTable *t, uint64_t nodeid, uint64_t fh) noexcept nogil
cdef Owned *holder_of(
    LockTable *t, uint64_t nodeid, uint64_t owner, const Lock *lock
) noexcept nogil

cdef bint remember(LockTable *t, uint64_t nodeid, const struct_stat *st) noexcept nogil
cdef void forget_state(LockTable *t, uint64_t nodeid) noexcept nogil

cdef void add_waiter(LockTable *t, Waiter *waiter) noexcept nogil
cdef void remove_waiter(LockTable *t, Waiter *waiter) noexcept nogil
cdef bint goes_round(LockTable *t, uint64_t owner) noexcept nogil
