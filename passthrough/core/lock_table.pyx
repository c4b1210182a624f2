"""The table of locks: owners, the locks that they hold on files, and owners that wait.

The locks that the host has granted are noted here for three purposes: to name the holder of a lock,
since the host knows the worker only; to find owners that wait for one another, since the host does
not look for them among locks of this kind; and to take the locks over onto another description.

The kernel's pages of a file may be older than a lock. Times and size of the host's file tell, as
they were when this volume last had to do with a lock of the file.

The table is private to a worker. lock_records.pyx has, for the next worker, what a table is made of
again; states of files are not in it, so that the first lock of each file finds the file changed.

No function here makes a system call, but the memory of many ranges is given back. All but
begin_table, end_table, make_owned and close_owned are called with the table's mutex held.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

from passthrough.core.held cimport (
    Lock, begin_held, end_held, fill_held, hinders, holds, note, reserve, writes,
)
from passthrough.core.layout cimport RELEASE, store32
from passthrough.core.libc cimport (
    ENOMEM, F_UNLCK, F_WRLCK, close, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
    struct_stat,
)
from passthrough.core.lock_records cimport (
    MOST_KEPT, Kept, add_record, begin_records, keep_held, keep_opened, kept_of, ranges_of,
    recover_records, remove_record, set_description, was_opened,
)


cdef int begin_table(LockTable *t, int *fd) noexcept nogil:
    """Begin without locks in memory that is 0, as `begin_records`: 0 or -errno."""
    pthread_mutex_init(&t.mutex, NULL)
    return begin_records(&t.records, fd)


cdef int recover_table(LockTable *t) noexcept nogil:
    """Fill a table that is empty from the records of a worker that has died: 0 or -ENOMEM."""
    cdef const Record *record
    cdef uint32_t index
    recover_records(&t.records)
    for index in range(t.records.shared.end):
        record = &t.records.at[index]
        if record.nodeid and not _restore(t, <Record *>record):
            return -ENOMEM
    return 0


cdef bint _restore(LockTable *t, Record *record) noexcept nogil:
    cdef const Kept *kept = kept_of(&t.records, record)
    cdef Owned *owned = make_owned(record.described >> 1, record.described & 1)
    if owned == NULL:
        return False
    owned.nodeid = record.nodeid
    owned.owner = record.owner
    owned.pid = kept.pid
    owned.wrote = kept.wrote
    owned.record = record
    owned.file = _made_file(t, owned.nodeid)
    if owned.file == NULL or not fill_held(&owned.held, ranges_of(kept), kept.count):
        return False
    _enter(t, owned)
    return True


cdef void end_table(LockTable *t) noexcept nogil:
    """Drop every lock, and close the descriptions that no thread uses."""
    cdef Owned *owned
    cdef bint last
    cdef int bucket
    pthread_mutex_lock(&t.mutex)
    while t.oldest != NULL:
        _unknow(t, t.oldest)
    for bucket in range(BUCKETS):
        while t.owners[bucket] != NULL:
            owned = t.owners[bucket]
            take_out(t, owned)
            last = drop_use(owned)
            pthread_mutex_unlock(&t.mutex)
            if last:
                close_owned(owned)
            pthread_mutex_lock(&t.mutex)
    pthread_mutex_unlock(&t.mutex)


cdef inline uint32_t _bucket(uint64_t nodeid, uint64_t owner) noexcept nogil:
    cdef uint64_t mixed = (nodeid * 0x9E3779B97F4A7C15ULL ^ owner) * 0xD6E8FEB86659FD93ULL
    return <uint32_t>(mixed >> 40)


cdef LockedFile *_file(LockTable *t, uint64_t nodeid) noexcept nogil:
    cdef LockedFile *file = t.files[_bucket(nodeid, 0) % BUCKETS]
    while file != NULL and file.nodeid != nodeid:
        file = file.chain
    return file


cdef LockedFile *_made_file(LockTable *t, uint64_t nodeid) noexcept nogil:
    """Return the file's entry, a new one if there is none, or NULL."""
    cdef LockedFile *file = _file(t, nodeid)
    cdef LockedFile **bucket
    if file == NULL:
        file = <LockedFile *>calloc(1, sizeof(LockedFile))
        if file != NULL:
            bucket = &t.files[_bucket(nodeid, 0) % BUCKETS]
            file.nodeid = nodeid
            file.chain = bucket[0]
            bucket[0] = file
    return file


cdef void _end_file(LockTable *t, LockedFile *file) noexcept nogil:
    """Free an entry that says nothing any more."""
    cdef LockedFile **place
    if file.first != NULL or file.known:
        return
    place = &t.files[_bucket(file.nodeid, 0) % BUCKETS]
    while place[0] != file:
        place = &place[0].chain
    place[0] = file.chain
    free(file)


# Owners


cdef Owned *find_owned(LockTable *t, uint64_t nodeid, uint64_t owner) noexcept nogil:
    """Return the locks of an owner on a file, or NULL."""
    cdef Owned *owned = t.owners[_bucket(nodeid, owner) % BUCKETS]
    while owned != NULL and (owned.owner != owner or owned.nodeid != nodeid):
        owned = owned.chain
    return owned


cdef bint add_use(LockTable *t, Owned *owned, uint64_t fh) noexcept nogil:
    """Count a user that is about to lock by the open file `fh`; false without memory.

    There is room then for what each user will note.
    """
    if not make_room(owned) or not keep_opened(&t.records, owned.record, fh):
        return False
    owned.users += 1
    return True


cdef bint make_room(Owned *owned) noexcept nogil:
    """Have room for what each user and one more will note; false if there is none."""
    cdef uint32_t more = 2 * (owned.users + 1)
    return owned.held.count + more <= MOST_KEPT and reserve(&owned.held, more)


cdef void note_lock(LockTable *t, Owned *owned, const Lock *lock) noexcept nogil:
    """Note a lock that the owner has got, or will have no more; there must be room."""
    note(&owned.held, lock)
    owned.changes += 1
    if lock.kind == <uint32_t>F_UNLCK:
        owned.wrote = owned.wrote and writes(&owned.held)
    else:
        owned.pid = lock.pid
        owned.wrote = owned.wrote or lock.kind == <uint32_t>F_WRLCK
    keep_held(&t.records, owned.record, &owned.held, owned.pid, owned.wrote)


cdef Owned *make_owned(int fd, bint writable) noexcept nogil:
    """Return an owner's locks on a description that is theirs now, with one user; or NULL."""
    cdef Owned *made = <Owned *>calloc(1, sizeof(Owned))
    if made != NULL:
        made.fd = fd
        made.writable = writable
        made.users = 1
        begin_held(&made.held)
    return made


cdef bint put_in(LockTable *t, Owned *made, Owned *before) noexcept nogil:
    """Put new locks into the table, in the place of `before` unless NULL; false without memory.

    The table's own use of `before` is left to the caller. Both must hold the same.
    """
    if before == NULL:
        return _add(t, made)
    made.pid = before.pid
    made.wrote = before.wrote
    made.record = before.record
    made.file = before.file
    made.chain = before.chain
    made.previous = before.previous
    made.next = before.next
    set_description(made.record, made.fd, made.writable)
    before.record = NULL
    before.file = NULL
    _place_of(t, before)[0] = made
    _link(made.file, made.previous, made)
    _link(made.file, made, made.next)
    return True


cdef bint _add(LockTable *t, Owned *made) noexcept nogil:
    cdef LockedFile *file = _made_file(t, made.nodeid)
    if file == NULL:
        return False
    made.record = add_record(&t.records, made.nodeid, made.owner, made.fd, made.writable)
    if made.record == NULL:
        _end_file(t, file)
        return False
    made.file = file
    _enter(t, made)
    return True


cdef void _enter(LockTable *t, Owned *made) noexcept nogil:
    """Have the locks found by their owner, and as the last ones of their file."""
    cdef Owned **place = &t.owners[_bucket(made.nodeid, made.owner) % BUCKETS]
    made.chain = place[0]
    place[0] = made
    _link(made.file, made.file.last, made)
    _link(made.file, made, NULL)
    store32(<int32_t *>&t.count, <int32_t>t.count + 1, RELEASE)


cdef Owned **_place_of(LockTable *t, const Owned *owned) noexcept nogil:
    cdef Owned **place = &t.owners[_bucket(owned.nodeid, owned.owner) % BUCKETS]
    while place[0] != owned:
        place = &place[0].chain
    return place


cdef void _link(LockedFile *file, Owned *one, Owned *other) noexcept nogil:
    """Let two of a file's owners follow one another; NULL: the end on that side."""
    if one == NULL:
        file.first = other
    else:
        one.next = other
    if other == NULL:
        file.last = one
    else:
        other.previous = one


cdef bint take_out(LockTable *t, Owned *owned) noexcept nogil:
    """Take an owner's locks out of the table; false if they are not in it.

    The table's own use of them is left to the caller.
    """
    cdef LockedFile *file = owned.file
    if file == NULL:
        return False
    _place_of(t, owned)[0] = owned.chain
    _link(file, owned.previous, owned.next)
    remove_record(&t.records, owned.record)
    owned.record = NULL
    owned.file = NULL
    store32(<int32_t *>&t.count, <int32_t>t.count - 1, RELEASE)
    _end_file(t, file)
    return True


cdef bint drop_use(Owned *owned) noexcept nogil:
    """Count a user less; true: the caller, without the mutex, has to close the description."""
    owned.users -= 1
    return owned.users == 0


cdef void close_owned(Owned *owned) noexcept nogil:
    """Close a description that has no user, and free what was noted of it."""
    close(owned.fd)
    end_held(&owned.held)
    free(owned)


cdef Owned *opened_by(LockTable *t, uint64_t nodeid, uint64_t fh) noexcept nogil:
    """Return the locks of an owner that has locked by the open file `fh`, or NULL."""
    cdef LockedFile *file = _file(t, nodeid)
    cdef Owned *owned = file.first if file != NULL else NULL
    while owned != NULL and not was_opened(&t.records, owned.record, fh):
        owned = owned.next
    return owned


cdef Owned *holder_of(
    LockTable *t, uint64_t nodeid, uint64_t owner, const Lock *lock
) noexcept nogil:
    """Return the locks of another owner that have a part of `lock`, or NULL."""
    cdef LockedFile *file = _file(t, nodeid)
    cdef Owned *owned = file.first if file != NULL else NULL
    while owned != NULL and (owned.owner == owner or not holds(&owned.held, lock)):
        owned = owned.next
    return owned


# States of files


cdef bint remember(LockTable *t, uint64_t nodeid, const struct_stat *st) noexcept nogil:
    """Remember a file's state; return whether that is not the state that was known."""
    cdef LockedFile *file = _made_file(t, nodeid)
    cdef State now
    cdef bint same
    if file == NULL:
        return True
    now.modified_s, now.modified_ns = st.st_mtim.tv_sec, st.st_mtim.tv_nsec
    now.changed_s, now.changed_ns = st.st_ctim.tv_sec, st.st_ctim.tv_nsec
    now.size = st.st_size
    same = file.known and memcmp(&file.state, &now, sizeof(now)) == 0
    file.state = now
    if t.newest != file:
        if file.known:
            _unlink(t, file)
        file.known = True
        file.older = t.newest
        file.newer = NULL
        if t.newest != NULL:
            t.newest.newer = file
        else:
            t.oldest = file
        t.newest = file
        t.known += 1
        if t.known > REMEMBERED:
            _unknow(t, t.oldest)
    return not same


cdef void forget_state(LockTable *t, uint64_t nodeid) noexcept nogil:
    """Have the next lock of the file find its content changed."""
    cdef LockedFile *file = _file(t, nodeid)
    if file != NULL and file.known:
        _unknow(t, file)


cdef void _unlink(LockTable *t, LockedFile *file) noexcept nogil:
    cdef LockedFile **newer = &t.oldest if file.older == NULL else &file.older.newer
    cdef LockedFile **older = &t.newest if file.newer == NULL else &file.newer.older
    newer[0], older[0] = file.newer, file.older
    t.known -= 1


cdef void _unknow(LockTable *t, LockedFile *file) noexcept nogil:
    _unlink(t, file)
    file.known = False
    _end_file(t, file)


# Owners that wait


cdef void add_waiter(LockTable *t, Waiter *waiter) noexcept nogil:
    """Note that an owner waits for a lock."""
    cdef Waiter **bucket = &t.waiters[_bucket(0, waiter.owner) % WAITER_BUCKETS]
    waiter.reached = 0
    waiter.next = bucket[0]
    bucket[0] = waiter


cdef void remove_waiter(LockTable *t, Waiter *waiter) noexcept nogil:
    """Note that the owner waits no more."""
    cdef Waiter **place = &t.waiters[_bucket(0, waiter.owner) % WAITER_BUCKETS]
    while place[0] != waiter:
        place = &place[0].next
    place[0] = waiter.next


cdef bint goes_round(LockTable *t, uint64_t owner) noexcept nogil:
    """Return whether the way from an owner to those it waits for, and on, leads back to it."""
    cdef Waiter *ahead
    cdef Waiter *waiter
    cdef LockedFile *file
    cdef Owned *owned
    t.searches += 1
    ahead = _reach(t, owner, NULL)
    while ahead != NULL:
        waiter = ahead
        ahead = waiter.ahead
        file = _file(t, waiter.nodeid)
        owned = file.first if file != NULL else NULL
        while owned != NULL:
            if owned.owner != waiter.owner and hinders(&owned.held, &waiter.lock):
                if owned.owner == owner:
                    return True
                ahead = _reach(t, owned.owner, ahead)
            owned = owned.next
    return False


cdef Waiter *_reach(LockTable *t, uint64_t owner, Waiter *ahead) noexcept nogil:
    """Return the waits to look at, with those of one more owner that this search has not met."""
    cdef Waiter *waiter = t.waiters[_bucket(0, owner) % WAITER_BUCKETS]
    while waiter != NULL:
        if waiter.owner == owner and waiter.reached != t.searches:
            waiter.reached = t.searches
            waiter.ahead = ahead
            ahead = waiter
        waiter = waiter.next
    return ahead
