"""Locks on the host's files, so that other volumes on one source, and the host, see them.

A POSIX lock belongs to an owner, fcntl_locking(2): all descriptors of a process that lead to one
file share its locks, and closing any of them drops them all. The worker cannot hold locks in the
name of others, with one exception: locks that belong to an open file description. So each owner
gets a description of its own of each file that it locks. The host merges, splits and replaces its
locks, and the host knows two owners as two. A lock of flock(2) is taken on the open file's own
descriptor.

Most locks compare the file's state with the state that was remembered, fstat(2), and unlocks
remember it. Two cases need no fstat(2). If the owner holds all bytes of a lock already, no other
owner can have changed them under a lock. If an owner has had no lock for writing, its unlock leaves
the state that is remembered alone.
"""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.descriptions cimport (
    as_host, clear_locks, leave, remember_now, set_lock, use_owned,
)
from passthrough.core.held cimport LAST_BYTE, Lock
from passthrough.core.libc cimport (
    EBADF,
    EDEADLK,
    EINTR,
    ENOLCK,
    F_OFD_GETLK,
    F_UNLCK,
    LOCK_NB,
    LOCK_UN,
    errno,
    fcntl,
    flock,
    fstat,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    struct_flock,
    struct_stat,
)
from passthrough.core.lock_table cimport (
    LockTable,
    Owned,
    Target,
    Waiter,
    add_waiter,
    close_owned,
    drop_use,
    find_owned,
    goes_round,
    holder_of,
    make_room,
    note_lock,
    remember,
    remove_waiter,
)
from passthrough.core.waits cimport Wait, wait_for_host

cdef enum:
    REPLACED = 2  # the description is no longer the owner's


# Locks of bytes


cdef int conflict(
    LockTable *t, const Target *target, uint64_t owner, const Lock *asked, Lock *found
) noexcept nogil:
    """Find what is in the way of the owner's lock; return 1 if there is such a lock, else 0.

    Its pid is that of a user of this volume or of a process of the host; 0 for a lock of another
    volume's user, and for a lock of the host that belongs to an open file description.
    """
    cdef struct_flock answer
    cdef Owned *owned
    cdef int result
    cdef bint last = False
    as_host(asked, &answer)
    pthread_mutex_lock(&t.mutex)
    owned = find_owned(t, target.nodeid, owner)
    if owned != NULL:
        owned.users += 1
    pthread_mutex_unlock(&t.mutex)
    while True:
        result = fcntl(owned.fd if owned != NULL else target.fd, F_OFD_GETLK, &answer)
        if result >= 0 or errno != EINTR:
            break
    result = -errno if result < 0 else answer.l_type != F_UNLCK
    if result == 1:
        found.kind = <uint32_t>answer.l_type
        found.start = <uint64_t>answer.l_start
        found.end = LAST_BYTE
        if answer.l_len:
            found.end = <uint64_t>(answer.l_start + answer.l_len - 1)
        found.pid = <uint32_t>max(answer.l_pid, 0)
    elif owned == NULL:
        return result
    pthread_mutex_lock(&t.mutex)
    if result == 1 and not found.pid:
        _name_holder(t, target, owner, found)
    if owned != NULL:
        last = drop_use(owned)
    pthread_mutex_unlock(&t.mutex)
    if last:
        close_owned(owned)
    return result


cdef inline void _name_holder(
    LockTable *t, const Target *target, uint64_t owner, Lock *found
) noexcept nogil:
    cdef const Owned *holder = holder_of(t, target.nodeid, owner, found)
    if holder != NULL:
        found.pid = holder.pid


cdef int take_lock(
    LockTable *t, const Target *target, uint64_t owner, const Lock *lock, Wait *wait
) noexcept nogil:
    """Take a lock for the owner; with `wait`, as soon as nothing is in the way.

    Return 1 if others may have changed the file since this volume last had to do with a lock of it,
    else 0. -EAGAIN: another lock is in the way; -EINTR: the wait was interrupted; -EBADF: the owner
    has closed the file meanwhile, or may not write to it.
    """
    cdef Owned *owned = NULL
    cdef struct_flock asked
    cdef bint covered = False, there, last
    cdef uint32_t changes = 0
    cdef int result
    while True:
        result = use_owned(t, target, owner, lock, &owned, &covered, &changes)
        if result < 0:
            return result
        if wait == NULL:
            result = set_lock(owned.fd, lock)
        else:
            as_host(lock, &asked)
            result = wait_for_host(wait, owned.fd, &asked, 0)
        if result < 0:
            leave(t, owned)
            return result
        result = _granted(t, owned, lock, covered, changes)
        if result != REPLACED:
            return result
        # Other threads may wait on it still, and would keep the lock that was just taken.
        clear_locks(owned.fd)
        pthread_mutex_lock(&t.mutex)
        there = find_owned(t, target.nodeid, owner) != NULL
        last = drop_use(owned)
        pthread_mutex_unlock(&t.mutex)
        if last:
            close_owned(owned)
        if not there:
            return -EBADF


cdef int _granted(
    LockTable *t, Owned *owned, const Lock *lock, bint covered, uint32_t changes
) noexcept nogil:
    """Note a lock that the host has granted, and leave the description; result as `take_lock`.

    REPLACED: it is no longer the owner's, and the caller still uses it.
    """
    cdef struct_stat st
    cdef int result = 0
    while True:
        if not covered and fstat(owned.fd, &st) < 0:
            result = -errno
        pthread_mutex_lock(&t.mutex)
        if owned.file == NULL:
            pthread_mutex_unlock(&t.mutex)
            return REPLACED
        if not covered or owned.changes == changes:
            break
        # The owner has unlocked in another thread, and others may have locked in between.
        covered = False
        pthread_mutex_unlock(&t.mutex)
    note_lock(t, owned, lock)
    if not covered and result == 0:
        result = remember(t, owned.nodeid, &st)
    drop_use(owned)  # the table uses it, too
    pthread_mutex_unlock(&t.mutex)
    return result


cdef int wait_lock(
    LockTable *t, const Target *target, uint64_t owner, const Lock *lock, Wait *wait
) noexcept nogil:
    """Take a lock for the owner as soon as nothing is in the way.

    Result as `take_lock`; -EDEADLK: an owner that it would wait for waits for it, or for an owner
    that does.
    """
    cdef Waiter waiter
    cdef bint for_ever
    cdef int result = -EDEADLK
    waiter.owner = owner
    waiter.nodeid = target.nodeid
    waiter.lock = lock[0]
    pthread_mutex_lock(&t.mutex)
    add_waiter(t, &waiter)
    for_ever = goes_round(t, owner)
    pthread_mutex_unlock(&t.mutex)
    if not for_ever:
        result = take_lock(t, target, owner, lock, wait)
    pthread_mutex_lock(&t.mutex)
    remove_waiter(t, &waiter)
    pthread_mutex_unlock(&t.mutex)
    return result


cdef int drop_lock(
    LockTable *t, uint64_t nodeid, uint64_t owner, const Lock *lock
) noexcept nogil:
    """Drop all that the owner holds of the lock's bytes."""
    cdef Owned *owned
    cdef bint wrote
    cdef int result
    pthread_mutex_lock(&t.mutex)
    owned = find_owned(t, nodeid, owner)
    if owned == NULL or not make_room(owned):
        pthread_mutex_unlock(&t.mutex)
        return 0 if owned == NULL else -ENOLCK
    wrote = owned.wrote
    note_lock(t, owned, lock)
    owned.users += 1
    pthread_mutex_unlock(&t.mutex)
    if wrote:
        remember_now(t, nodeid, owned.fd)
    result = set_lock(owned.fd, lock)
    leave(t, owned)
    return result


# Locks of whole files


cdef int whole_lock(
    LockTable *t, const Target *target, int operation, Wait *wait
) noexcept nogil:
    """Lock or unlock the whole file for this open file alone, flock(2); result as `take_lock`."""
    cdef struct_stat st
    cdef int result
    if operation == LOCK_UN:
        remember_now(t, target.nodeid, target.fd)
        return _flock(target.fd, LOCK_UN)
    if wait == NULL:
        result = _flock(target.fd, operation | LOCK_NB)
    else:
        result = wait_for_host(wait, target.fd, NULL, operation)
    if result < 0:
        return result
    if fstat(target.fd, &st) < 0:
        return -errno
    pthread_mutex_lock(&t.mutex)
    result = remember(t, target.nodeid, &st)
    pthread_mutex_unlock(&t.mutex)
    return result


cdef int _flock(int fd, int operation) noexcept nogil:
    while flock(fd, operation) < 0:
        if errno != EINTR:
            return -errno
    return 0
