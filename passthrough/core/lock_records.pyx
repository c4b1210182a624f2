"""The owners' locks as the next worker finds them, in flat memory that workers of a volume share.

**Valid at every instant.** A worker may be killed between any two instructions. One store publishes
a record or takes it back: that of its `nodeid`. One store exchanges the description of an owner.
The owner's ranges are written into the copy that is not in force; one store puts it in force.
So a record always says what its owner held before a lock or after it.

The host may have granted a lock that no record has. The caller of that lock has no answer, so its
request is in hand, and the next worker serves it again: to the host, the description already has
the lock. An unlock is recorded first. A record is taken back before its descriptor is closed. So a
descriptor of no record is lost, and so are its locks. The next worker clears them before it serves,
because an owner's former description would be in the way of the owner's new one.

**Memory.** A record has room for the few ranges of most owners. Each has an area of its own for
more, of which only pages that have been used take memory.

All but begin_records and end_records are called with the mutex of the table of locks held.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from passthrough.core.layout cimport RELEASE, store32, store64
from passthrough.core.libc cimport EPROTO, MADV_REMOVE, close, madvise, munmap
from passthrough.core.shared cimport map_memory

cdef enum:
    PAGE = 4096
    AREA = 1 << 20
    OPENED_ROOM = MOST_OPENED * 8
    KEPT_ROOM = (AREA - OPENED_ROOM) >> 1
    SECOND = 1  # Record.current: the second copy is in force
    LARGE = 2  # the copy lies in the area


cdef uint64_t _areas_at() noexcept nogil:
    cdef uint64_t end = sizeof(Shared) + <uint64_t>MOST_RECORDS * sizeof(Record)
    return (end + PAGE - 1) // PAGE * PAGE


cdef uint64_t _size() noexcept nogil:
    return _areas_at() + <uint64_t>MOST_RECORDS * AREA


cdef int begin_records(Records *r, int *fd) noexcept nogil:
    """Map the memory `fd` of another program, or if that is -1 make it: 0 or -errno.

    EPROTO: the memory is not of this version.
    """
    cdef int error = 0
    cdef void *start = map_memory(fd, "passfs-locks", _size(), &error)
    if start == NULL:
        return -error
    if (<Shared *>start).end > MOST_RECORDS:
        munmap(start, _size())
        return -EPROTO
    r.fd = fd[0]
    r.shared = <Shared *>start
    r.at = <Record *>(r.shared + 1)
    r.areas = <char *>start + _areas_at()
    r.free = 0
    return 0


cdef void end_records(Records *r) noexcept nogil:
    """Give the memory back."""
    munmap(r.shared, _size())
    close(r.fd)
    r.shared = NULL


cdef void recover_records(Records *r) noexcept nogil:
    """Find the records that are free, after the worker that used them has died."""
    cdef uint32_t index
    r.free = 0
    for index in range(r.shared.end):
        if not r.at[index].nodeid:
            _free(r, &r.at[index])


cdef bint are_records_sound(const Records *r) noexcept nogil:
    """Return whether no count of a dead worker's records is higher than a worker makes it."""
    cdef const Record *record
    cdef uint32_t index, most
    if r.shared.end > MOST_RECORDS:
        return False
    for index in range(r.shared.end):
        record = &r.at[index]
        most = MOST_KEPT if record.current & LARGE else FEW_KEPT
        if record.nodeid and (
            record.opened_count > MOST_OPENED or kept_of(r, record).count > most
        ):
            return False
    return True


cdef void _free(Records *r, Record *record) noexcept nogil:
    cdef uint32_t index = <uint32_t>(record - r.at)
    if record.spread:
        madvise(r.areas + <uint64_t>index * AREA, AREA, MADV_REMOVE)
        record.spread = 0
    record.next = r.free
    r.free = index + 1


# Records


cdef Record *add_record(
    Records *r, uint64_t nodeid, uint64_t owner, int fd, bint writable
) noexcept nogil:
    """Record a description by which nothing is locked yet; NULL: there are too many."""
    cdef Record *record
    if r.free:
        record = &r.at[r.free - 1]
        r.free = record.next
    elif r.shared.end < MOST_RECORDS:
        record = &r.at[r.shared.end]
        store32(<int32_t *>&r.shared.end, <int32_t>r.shared.end + 1, RELEASE)
    else:
        return NULL
    record.owner = owner
    record.current = record.opened_count = 0
    memset(&record.copies[0].kept, 0, sizeof(Kept))
    set_description(record, fd, writable)
    store64(&record.nodeid, nodeid, RELEASE)
    return record


cdef void remove_record(Records *r, Record *record) noexcept nogil:
    """Take a record back; the caller then closes its descriptor."""
    store64(&record.nodeid, 0, RELEASE)
    _free(r, record)


cdef void set_description(Record *record, int fd, bint writable) noexcept nogil:
    store32(&record.described, fd << 1 | writable, RELEASE)


# Open files


cdef inline uint64_t *_opened_at(
    const Records *r, const Record *record, uint32_t at
) noexcept nogil:
    if at < FEW_OPENED:
        return <uint64_t *>&record.opened[at]
    return <uint64_t *>_area(r, record) + at


cdef inline char *_area(const Records *r, const Record *record) noexcept nogil:
    return r.areas + <uint64_t>(record - r.at) * AREA


cdef bint keep_opened(Records *r, Record *record, uint64_t fh) noexcept nogil:
    """Record that the owner locks by the open file `fh`; false: by too many."""
    if was_opened(r, record, fh):
        return True
    if record.opened_count == MOST_OPENED:
        return False
    if record.opened_count >= FEW_OPENED:
        record.spread = 1
    store64(_opened_at(r, record, record.opened_count), fh, RELEASE)
    store32(<int32_t *>&record.opened_count, <int32_t>record.opened_count + 1, RELEASE)
    return True


cdef bint was_opened(const Records *r, const Record *record, uint64_t fh) noexcept nogil:
    """Return whether the owner has locked by the open file `fh`."""
    cdef uint32_t at
    for at in range(record.opened_count):
        if _opened_at(r, record, at)[0] == fh:
            return True
    return False


# Ranges


cdef inline Kept *_copy(const Records *r, const Record *record, uint32_t which) noexcept nogil:
    if which & LARGE:
        return <Kept *>(_area(r, record) + OPENED_ROOM + (which & SECOND) * KEPT_ROOM)
    return <Kept *>&record.copies[which & SECOND].kept


cdef void keep_held(
    Records *r, Record *record, const Held *held, uint32_t pid, bint wrote
) noexcept nogil:
    """Record what the owner holds now, MOST_KEPT ranges or less."""
    cdef uint32_t which = ~record.current & SECOND
    cdef Kept *kept
    if held.count > FEW_KEPT:
        which |= LARGE
        record.spread = 1
    kept = _copy(r, record, which)
    kept.count = held.count
    kept.pid = pid
    kept.wrote = wrote
    memcpy(kept + 1, held.ranges, held.count * sizeof(Lock))
    store32(<int32_t *>&record.current, <int32_t>which, RELEASE)


cdef const Kept *kept_of(const Records *r, const Record *record) noexcept nogil:
    """Return what the owner holds."""
    return _copy(r, record, record.current)
