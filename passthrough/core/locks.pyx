"""Requests for locks, which are taken on the host's files (`locks=host`), and INTERRUPT.

A thread waits inside the host's call. It has another thread serve meanwhile: if no more threads can
be had (a pids limit), the last one waits for no lock, because the unlock will need the thread. Its
caller gets ENOLCK.

Files that are opened to be read get FOPEN_NOFLUSH until the volume has its first lock of fcntl(2).
Without FLUSH the worker does not hear that an owner has closed a file, which is when its locks end.
A file that was opened to be read before gives its locks up when its last descriptor is closed.

The kernel's pages of a file may be older than a lock. If others may have changed the file, the
kernel drops its pages before the caller hears of the lock: SQLite on two volumes depends on that.
A process of its own waits for the drop (notify.pyx). If there is none to be had, the lock is given
back, and the caller gets ENOLCK.
A worker may die between lock and drop. So the kernel drops its pages also for each request that is
served again.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from passthrough.core.abi cimport (
    FUSE_LK_FLOCK,
    FUSE_UNIQUE_RESEND,
    fuse_in_header,
    fuse_interrupt_in,
    fuse_lk_in,
    fuse_lk_out,
)
from passthrough.core.backing cimport passes
from passthrough.core.descriptions cimport drop_opened, drop_owner
from passthrough.core.held cimport LAST_BYTE, Lock
from passthrough.core.host_locks cimport (
    conflict, drop_lock, take_lock, wait_lock, whole_lock,
)
from passthrough.core.journal cimport begin_call
from passthrough.core.layout cimport (
    ACQUIRE, FILES, RELAXED, RELEASE, OpenFile, load32, open_get, store32,
)
from passthrough.core.libc cimport (
    EAGAIN,
    EBADF,
    EDEADLK,
    EINVAL,
    ENOLCK,
    ENOMEM,
    F_RDLCK,
    F_UNLCK,
    F_WRLCK,
    LOCK_EX,
    LOCK_SH,
    LOCK_UN,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from passthrough.core.lock_table cimport (
    LockTable, Target, begin_table, end_table, forget_state, recover_table,
)
from passthrough.core.lock_records cimport Record, Records, end_records
from passthrough.core.notify cimport data_changed, drop_pages
from passthrough.core.rare cimport report
from passthrough.core.state cimport (
    NO_ANSWER, REPORT_LOCK_HANGS, Thread, Volume, about_to_block, is_stopped, let_others_finish,
    may_wait,
)
from passthrough.core.waits cimport (
    Wait, Waits, begin_waits, end_waits, enter_wait, interrupt, leave_wait,
)

cdef enum:
    TRIES = 3  # more than one: a thread with a request may not have had a processor since


cdef int locks_open(Volume *v) noexcept nogil:
    """Begin without locks: 0 or -errno. Those of another program come with `locks_recover`."""
    cdef Locks *locks = <Locks *>calloc(1, sizeof(Locks))
    cdef int result
    if locks == NULL:
        return -ENOMEM
    result = begin_table(&locks.table, &v.locks_fd)
    if result == 0:
        result = begin_waits(&locks.waits, &locks.table.records.shared.named)
        if result < 0:
            end_records(&locks.table.records)
    if result < 0:
        free(locks)
        return result
    v.locks = locks
    return 0


cdef void locks_close(Volume *v) noexcept nogil:
    """Drop every lock. If threads wait still, their memory stays until the process ends."""
    cdef Locks *locks = <Locks *>v.locks
    if locks == NULL:
        return
    end_table(&locks.table)
    if not waiting(v):
        end_waits(&locks.waits)
        end_records(&locks.table.records)
        v.locks = NULL
        free(locks)


cdef int locks_recover(Volume *v) noexcept nogil:
    """Take over the locks that a worker had when it died: 0 or -ENOMEM.

    The volume is as `locks_open` has left it. Requests that were in hand are served again; waits
    begin anew so. FLUSH ends the locks of an owner, RELEASE those of files with FOPEN_NOFLUSH.
    """
    cdef LockTable *table = &(<Locks *>v.locks).table
    v.locks_used = table.records.shared.used
    return recover_table(table)


cdef const Record *next_record(const Volume *v, uint32_t *index) noexcept nogil:
    """Return the first record in use from `index` on, which becomes the next one's; or NULL."""
    cdef const Records *records = &(<const Locks *>v.locks).table.records
    cdef const Record *record
    while index[0] < records.shared.end:
        record = &records.at[index[0]]
        index[0] += 1
        if record.nodeid:
            return record
    return NULL


cdef uint32_t waiting(const Volume *v) noexcept nogil:
    """Return how many threads wait for a lock."""
    cdef const Locks *locks = <const Locks *>v.locks
    if locks == NULL:
        return 0
    return <uint32_t>load32(<const int32_t *>&locks.waits.count, ACQUIRE)


cdef void owner_closed(Thread *t, uint64_t nodeid, uint64_t owner) noexcept nogil:
    """Drop all that an owner holds of a file of which it has closed a descriptor."""
    if load32(&t.volume.locks_used, ACQUIRE):
        drop_owner(_table(t), nodeid, owner)


cdef void file_released(Thread *t, const OpenFile *file, bint unlock) noexcept nogil:
    """Drop what was locked by an open file that its last descriptor has left.

    With `unlock` it may have a lock of flock(2). That lock would end with the host's descriptor,
    unless the kernel keeps the file open for others to read and write through (backing.pyx).
    """
    cdef Target target
    if unlock:
        _aim(t, file, &target)
        whole_lock(_table(t), &target, LOCK_UN, NULL)
    if load32(&t.volume.locks_used, ACQUIRE):
        drop_opened(_table(t), file.nodeid, file.fh)


cdef inline LockTable *_table(Thread *t) noexcept nogil:
    return &(<Locks *>t.volume.locks).table


cdef inline void _aim(Thread *t, const OpenFile *file, Target *target) noexcept nogil:
    target.nodeid = file.nodeid
    target.fh = file.fh
    target.fd = file.fd
    target.volume = t.volume


cdef inline int _target(Thread *t, uint64_t fh, Target *target) noexcept nogil:
    cdef const OpenFile *file = open_get(t.volume.tables, FILES, fh)
    if file == NULL:
        return -EBADF
    _aim(t, file, target)
    return 0


cdef inline int _lock(const fuse_lk_in *asked, Lock *lock) noexcept nogil:
    """Read a lock of bytes; -EINVAL if it is none."""
    lock.start = asked.lk.start
    lock.end = asked.lk.end
    lock.kind = asked.lk.type
    lock.pid = asked.lk.pid
    if not (_is_kind(lock.kind) and lock.start <= lock.end <= LAST_BYTE):
        return -EINVAL
    return 0


cdef inline bint _is_kind(uint32_t kind) noexcept nogil:
    return (
        kind == <uint32_t>F_RDLCK or kind == <uint32_t>F_WRLCK or kind == <uint32_t>F_UNLCK
    )


cdef inline int _operation(uint32_t kind) noexcept nogil:
    """Return how flock(2) names a kind."""
    if kind == <uint32_t>F_UNLCK:
        return LOCK_UN
    return LOCK_EX if kind == <uint32_t>F_WRLCK else LOCK_SH


cdef int do_getlk(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Find what is in the way of a lock, F_GETLK of fcntl(2)."""
    cdef const fuse_lk_in *asked = <const fuse_lk_in *>arg
    cdef fuse_lk_out *out = <fuse_lk_out *>t.out
    cdef Target target
    cdef Lock lock, found
    cdef int result = _target(t, asked.fh, &target)
    if result == 0:
        result = _lock(asked, &lock)
    if result == 0:
        result = conflict(_table(t), &target, asked.owner, &lock, &found)
    if result < 0:
        return result
    if result == 0:
        found = lock
        found.kind = F_UNLCK
        found.pid = 0
    out.lk.start = found.start
    out.lk.end = found.end
    out.lk.type = found.kind
    out.lk.pid = found.pid
    return sizeof(fuse_lk_out)


cdef int do_setlk(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Take or drop a lock, if nothing is in the way.

    For the kernel, a lock in the way may be gone: the kernel does not wait for the answer to
    RELEASE, which another thread may be at, or may have left to a successor. Programs count on a
    lock that ends when its file is closed.
    """
    cdef const fuse_lk_in *asked = <const fuse_lk_in *>arg
    cdef int result
    cdef int _
    for _ in range(TRIES):
        result = _set(t, asked)
        if result != -EAGAIN:
            return _taken(t, h, asked, result)
        if not let_others_finish(t):
            break
    result = _set(t, asked)
    if result == -EAGAIN and is_stopped(t.volume):
        # A successor serves the RELEASE, and this request again.
        result = do_setlkw(t, h, arg, n)
        return -EAGAIN if result == -EDEADLK else result
    return _taken(t, h, asked, result)


cdef int _set(Thread *t, const fuse_lk_in *asked) noexcept nogil:
    """Take or drop a lock; 1: others may have changed the file."""
    cdef Target target
    cdef Lock lock
    cdef int result = _target(t, asked.fh, &target)
    if result < 0:
        return result
    if asked.lk.type != <uint32_t>F_UNLCK:
        begin_call(t.journal)
    if asked.lk_flags & FUSE_LK_FLOCK:
        if not _is_kind(asked.lk.type):
            return -EINVAL
        return whole_lock(_table(t), &target, _operation(asked.lk.type), NULL)
    result = _lock(asked, &lock)
    if result < 0:
        return result
    if lock.kind == <uint32_t>F_UNLCK:
        return drop_lock(_table(t), target.nodeid, asked.owner, &lock)
    if not load32(&t.volume.locks_used, RELAXED):
        store32(&_table(t).records.shared.used, 1, RELEASE)
        store32(&t.volume.locks_used, 1, RELEASE)
    return take_lock(_table(t), &target, asked.owner, &lock, NULL)


cdef int do_setlkw(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Take a lock as soon as nothing is in the way, or until INTERRUPT comes."""
    cdef const fuse_lk_in *asked = <const fuse_lk_in *>arg
    cdef Waits *waits = &(<Locks *>t.volume.locks).waits
    cdef Wait *wait
    # Linux also sends LOCK_UN of flock(2) so. Often nothing is in the way.
    cdef int result = _set(t, asked)
    if result != -EAGAIN:
        return _taken(t, h, asked, result)
    about_to_block(t)
    if not may_wait(t):
        return -ENOLCK
    result = enter_wait(waits, h.unique & ~FUSE_UNIQUE_RESEND, &wait)
    if result < 0:
        return result
    result = _wait(t, asked, wait)
    leave_wait(waits, wait)
    return _taken(t, h, asked, result)


cdef int _wait(Thread *t, const fuse_lk_in *asked, Wait *wait) noexcept nogil:
    cdef Target target
    cdef Lock lock
    cdef int result = _target(t, asked.fh, &target)
    if result < 0:
        return result
    if asked.lk_flags & FUSE_LK_FLOCK:
        return whole_lock(_table(t), &target, _operation(asked.lk.type), wait)
    _lock(asked, &lock)
    return wait_lock(_table(t), &target, asked.owner, &lock, wait)


cdef int _taken(
    Thread *t, const fuse_in_header *h, const fuse_lk_in *asked, int result
) noexcept nogil:
    """Answer a caller that has a lock now, after the kernel has dropped what may be older.

    Unless the kernel collects writes: then no other writer is expected. The kernel waits for pages
    that others are about to read, by requests of their own, so another thread must serve. It has no
    pages of a file that passes through.
    """
    if result == 0 and t.again and asked.lk.type != <uint32_t>F_UNLCK:
        result = 1
    if result != 1:
        return result
    if t.volume.options.writeback:
        return 0
    if passes(t, h.nodeid):
        return data_changed(t.volume, h.nodeid)
    about_to_block(t)
    result = drop_pages(t.volume, h.nodeid) if may_wait(t) else -EAGAIN
    if result == -EAGAIN:
        _give_lock_back(t, h, asked)
        return -ENOLCK
    return result


cdef void _give_lock_back(
    Thread *t, const fuse_in_header *h, const fuse_lk_in *asked
) noexcept nogil:
    """Unlock what has just been locked: the kernel may still keep an older content."""
    cdef fuse_lk_in unlocked = asked[0]
    cdef LockTable *table = _table(t)
    unlocked.lk.type = F_UNLCK
    _set(t, &unlocked)
    pthread_mutex_lock(&table.mutex)
    forget_state(table, h.nodeid)
    pthread_mutex_unlock(&table.mutex)


cdef int do_interrupt(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """End the wait of another request's caller: for a lock, no other request can last.

    The kernel waits for the answer to that other request, and for none to this one.
    """
    cdef const fuse_interrupt_in *named = <const fuse_interrupt_in *>arg
    cdef Waits *waits = &(<Locks *>t.volume.locks).waits
    if not interrupt(waits, named.unique & ~FUSE_UNIQUE_RESEND):
        report(t.volume, REPORT_LOCK_HANGS, 0, NULL)
    return NO_ANSWER
