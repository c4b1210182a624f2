"""The open file description that each owner of locks has of each file that it locks.

A description is open for writing only where the caller's is, as a lock for writing needs it: a
descriptor open for writing keeps a program from being executed. If an owner that has locked by a
descriptor for reading locks by one for writing, its locks move to a new description.

The table and each thread that is about to lock use a description; the last one closes it.

Threads: table work is done under the table's mutex, system calls outside of it.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memset

from passthrough.core.held cimport LAST_BYTE, Lock, covers, fill_held
from passthrough.core.layout cimport ACQUIRE, load32
from passthrough.core.libc cimport (
    AT_FDCWD,
    EBADF,
    EINTR,
    ENOLCK,
    F_GETFL,
    F_OFD_SETLK,
    F_UNLCK,
    F_WRLCK,
    O_ACCMODE,
    O_CLOEXEC,
    O_RDONLY,
    O_RDWR,
    SEEK_SET,
    close,
    errno,
    fcntl,
    fstat,
    openat,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    struct_flock,
    struct_stat,
)
from passthrough.core.lock_table cimport (
    LockTable,
    Owned,
    Target,
    add_use,
    close_owned,
    drop_use,
    find_owned,
    make_owned,
    opened_by,
    put_in,
    remember,
    take_out,
)
from passthrough.core.state cimport PATH_ROOM, path_of


# Calls


cdef void as_host(const Lock *lock, struct_flock *out) noexcept nogil:
    memset(out, 0, sizeof(out[0]))
    out.l_type = <short>lock.kind
    out.l_whence = SEEK_SET
    out.l_start = <int64_t>lock.start
    out.l_len = 0 if lock.end >= LAST_BYTE else <int64_t>(lock.end - lock.start + 1)


cdef int set_lock(int fd, const Lock *lock) noexcept nogil:
    """Set or clear a lock of an open file description; -EAGAIN: another lock is in the way."""
    cdef struct_flock asked
    as_host(lock, &asked)
    while fcntl(fd, F_OFD_SETLK, &asked) < 0:
        if errno != EINTR:
            return -errno
    return 0


cdef int clear_locks(int fd) noexcept nogil:
    cdef Lock everything
    everything.kind = F_UNLCK
    everything.start = 0
    everything.end = LAST_BYTE
    return set_lock(fd, &everything)


cdef int _reopen(const Target *target, bint writable) noexcept nogil:
    """Open a description of the same file; return the descriptor or -errno."""
    cdef char path[PATH_ROOM]
    cdef int fd
    path_of(target.volume, target.fd, path)
    while True:
        fd = openat(AT_FDCWD, path, (O_RDWR if writable else O_RDONLY) | O_CLOEXEC)
        if fd >= 0:
            return fd
        if errno != EINTR:
            return -errno


cdef void remember_now(LockTable *t, uint64_t nodeid, int fd) noexcept nogil:
    cdef struct_stat st
    if fstat(fd, &st) == 0:
        pthread_mutex_lock(&t.mutex)
        remember(t, nodeid, &st)
        pthread_mutex_unlock(&t.mutex)


# Descriptions


cdef void leave(LockTable *t, Owned *owned) noexcept nogil:
    """Use a description no longer; its last user closes it."""
    cdef bint last
    pthread_mutex_lock(&t.mutex)
    last = drop_use(owned)
    pthread_mutex_unlock(&t.mutex)
    if last:
        close_owned(owned)


cdef int use_owned(
    LockTable *t, const Target *target, uint64_t owner, const Lock *lock, Owned **out,
    bint *covered, uint32_t *changes
) noexcept nogil:
    """Find or make the description to set `lock` on for the owner; the caller must leave it.

    `covered` becomes whether the owner holds all of the lock's bytes by now, and `changes` that of
    the description.
    """
    cdef Owned *before
    cdef bint enough
    cdef int result
    while True:
        pthread_mutex_lock(&t.mutex)
        before = find_owned(t, target.nodeid, owner)
        if before != NULL and (before.writable or lock.kind != <uint32_t>F_WRLCK):
            enough = add_use(t, before, target.fh)
            covered[0] = covers(&before.held, lock)
            changes[0] = before.changes
            out[0] = before
            pthread_mutex_unlock(&t.mutex)
            return 0 if enough else -ENOLCK
        if before != NULL:
            before.users += 1
        pthread_mutex_unlock(&t.mutex)
        result = _make(t, target, owner, lock, before)
        if before != NULL:
            leave(t, before)
        if result < 0:
            return result


cdef int _make(
    LockTable *t, const Target *target, uint64_t owner, const Lock *lock, Owned *before
) noexcept nogil:
    """Make a description for the owner in the place of `before`, which the caller uses.

    Return 0 also if another thread was faster.
    """
    cdef Owned *made
    cdef uint32_t changes = 0
    cdef int fd
    cdef int result = fcntl(target.fd, F_GETFL)
    cdef bint writable = result & O_ACCMODE != O_RDONLY
    if result < 0:
        return -errno
    if lock.kind == <uint32_t>F_WRLCK and not writable:
        return -EBADF
    fd = _reopen(target, writable)
    if fd < 0:
        return fd
    made = make_owned(fd, writable)
    if made == NULL:
        close(fd)
        return -ENOLCK
    made.nodeid = target.nodeid
    made.owner = owner
    result = _take_over(t, made, before, &changes) if before != NULL else 0
    if result == 0:
        result = _put_in(t, made, before, changes)
    if result <= 0:
        leave(t, made)
    elif before != NULL:
        clear_locks(before.fd)
        leave(t, before)
    return min(result, 0)


cdef int _take_over(LockTable *t, Owned *made, Owned *before, uint32_t *changes) noexcept nogil:
    """Set all that the owner holds on the new description, too.

    The former one is not writable, so all locks are for reading, and both can have them.
    """
    cdef uint32_t at
    cdef bint enough
    cdef int result = 0
    pthread_mutex_lock(&t.mutex)
    enough = fill_held(&made.held, before.held.ranges, before.held.count)
    changes[0] = before.changes
    pthread_mutex_unlock(&t.mutex)
    if not enough:
        return -ENOLCK
    for at in range(made.held.count):
        result = set_lock(made.fd, &made.held.ranges[at])
        if result < 0:
            break
    return result


cdef int _put_in(LockTable *t, Owned *made, Owned *before, uint32_t changes) noexcept nogil:
    """Put the new description in for its owner; return 1, or 0 if another thread was faster."""
    cdef int result = 0
    pthread_mutex_lock(&t.mutex)
    if find_owned(t, made.nodeid, made.owner) == before and (
        before == NULL or before.changes == changes
    ):
        result = 1 if put_in(t, made, before) else -ENOLCK
    pthread_mutex_unlock(&t.mutex)
    return result


# Closing


cdef void drop_owner(LockTable *t, uint64_t nodeid, uint64_t owner) noexcept nogil:
    """Drop all that the owner holds of a file: it has closed a descriptor of it."""
    cdef Owned *owned
    if not load32(<const int32_t *>&t.count, ACQUIRE):
        return
    pthread_mutex_lock(&t.mutex)
    owned = find_owned(t, nodeid, owner)
    _end(t, owned)


cdef void drop_opened(LockTable *t, uint64_t nodeid, uint64_t fh) noexcept nogil:
    """Drop all that was locked by an open file: no caller has it open any more."""
    cdef Owned *owned = NULL
    while load32(<const int32_t *>&t.count, ACQUIRE):
        pthread_mutex_lock(&t.mutex)
        owned = opened_by(t, nodeid, fh)
        _end(t, owned)
        if owned == NULL:
            break


cdef void _end(LockTable *t, Owned *owned) noexcept nogil:
    """Take an owner's description, or NULL, out of the table, and let the mutex go.

    If a thread waits on it, or is about to, its locks must not stay until the description ends.
    """
    cdef bint wrote = False, shared = False
    if owned != NULL:
        take_out(t, owned)
        wrote = owned.wrote
        shared = owned.users > 1
    pthread_mutex_unlock(&t.mutex)
    if owned == NULL:
        return
    if wrote:
        remember_now(t, owned.nodeid, owned.fd)
    if shared:
        clear_locks(owned.fd)
    leave(t, owned)
