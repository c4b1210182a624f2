"""Inodes, open files, mounts and places: found, given out and taken back.

**Valid at every instant.** A process may be killed between any two instructions here, and its
successor maps the same memory. So one store publishes a slot or takes it back: the store of its
`nodeid` or `fh`, after all other fields are there. All else is derived, and `recover` makes it
anew: hash, free lists, counters, `opens` of inodes, users of mounts. A death can lose descriptors
and backing ids between a slot and the host (lost.pyx). Each change for a request is announced in
its journal first, so that a successor takes back what the kernel has not been told of (settle.pyx).

**Locks.** One mutex guards the tables. It lies in the private memory of each process: a successor
begins with a mutex of its own, so no mutex is left locked by a death. Without it work `inode_of`,
`open_get` and the reads of what they return, because the kernel forgets nothing that a request in
hand names. `trim` gives back only memory in which no slot lives.

**Numbers.** An inode is found by place and st_ino. A descriptor keeps the host from giving the
number to another file. If an inode is held by file handle, the handles decide: a file with a reused
number is an inode of its own, and the former inode is REPLACED: only its nodeid finds it. Users see
the host's number, in other places with the number of the place above bit 47 (`shown_in`). The table
counts, with bit 55, what cannot be shown: 0, 1, a number that a live inode shows.
"""

from libc.errno cimport EAGAIN, EBADF, ENFILE, ENOENT, ESTALE
from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from passthrough.core.counters cimport show
from passthrough.core.journal cimport (
    announce_forget, announce_lookup, announce_open, announce_return, end_return, note_backing,
    note_settled,
)
from passthrough.core.libc cimport sched_yield
from passthrough.core.places cimport drop_mount, place_of
from passthrough.core.slots cimport (
    count_handles, count_inodes, count_opens, current, free_inode, free_open, has_room, hash_of,
    insert, pthread_mutex_lock, pthread_mutex_unlock, shown_number, take_inode, take_open, take_out,
)
from passthrough.core.steps cimport (
    COUNTED, FORGETTING, FORGOTTEN, GRANTED, GRANTING, OPENED, OPENING, step_of,
)


# Inodes


cdef int grant(Tables *t, Journal *j, const Found *found, Granted *out) noexcept nogil:
    """Count one lookup of a file; see KNOWN and what follows it for the result.

    If the hash can grow only when `trim` has given back a piece of memory behind it, this waits.
    """
    cdef int result = _grant(t, j, found, out)
    while result == -ENFILE and load64(&t.hash_room, RELAXED) < t.header.offsets.hash_entries:
        sched_yield()
        result = _grant(t, j, found, out)
    return result


cdef int _grant(Tables *t, Journal *j, const Found *found, Granted *out) noexcept nogil:
    cdef uint32_t place, hashed, index
    cdef int result
    pthread_mutex_lock(&t.mutex)
    place = place_of(t, found)
    if place == NO_PLACE:
        pthread_mutex_unlock(&t.mutex)
        return -ENFILE
    hashed = hash_of(place, found.ino)
    index = current(t, hashed, place, found.ino)
    result = _choice(t, found, index)
    if result == TAKEN or result == NEW_BY_HANDLE:
        index = _add(t, j, found, place, hashed, index, result == NEW_BY_HANDLE)
        if index == NONE:
            result = -ENFILE
    elif result == KNOWN and index != ROOT_INDEX:
        announce_lookup(j, t.inodes[index].nodeid, t.inodes[index].lookups)
        step_of(t, GRANTING)
        t.inodes[index].lookups += 1
        _set_told(&t.inodes[index])
        if t.inodes[index].flags & (REFUSED | LISTED):
            _set_flags(&t.inodes[index], t.inodes[index].flags & ~(REFUSED | LISTED))
    if result >= 0 and result != NEEDS_HANDLE:
        out.nodeid = t.inodes[index].nodeid
        out.shown_ino = t.inodes[index].shown_ino
        step_of(t, GRANTED)
        note_settled(j)
        step_of(t, COUNTED)
    pthread_mutex_unlock(&t.mutex)
    return result


cdef int _choice(Tables *t, const Found *found, uint32_t index) noexcept nogil:
    """Decide how `grant` goes on; `index` has the inode that has the number now."""
    cdef bint by_handle = index != NONE and t.inodes[index].flags & BY_HANDLE
    cdef bint has_handle
    if found.dated and (
        index == NONE or by_handle or <int32_t>(t.inodes[index].born - found.since) > 0
    ):
        return -ESTALE
    if index != NONE and not by_handle:
        return KNOWN
    if found.handle == NULL:
        if found.fd < 0:
            return -ENOENT
        if by_handle or t.header.descriptors >= t.header.limits.budget:
            return NEEDS_HANDLE
        return TAKEN
    has_handle = 0 < found.handle.handle_bytes <= t.header.limits.handle_bytes
    if by_handle and has_handle and _is_handle_of(t, index, found.handle):
        return KNOWN
    if found.fd < 0:
        return -ENOENT
    return NEW_BY_HANDLE if has_handle else TAKEN


cdef bint _is_handle_of(Tables *t, uint32_t index, const FileHandle *handle) noexcept nogil:
    cdef const FileHandle *own = handle_of(t, &t.inodes[index])
    if handle.handle_bytes != own.handle_bytes:
        return False
    return memcmp(own, handle, 8 + handle.handle_bytes) == 0


cdef uint32_t _add(
    Tables *t, Journal *j, const Found *found, uint32_t place, uint32_t hashed, uint32_t former,
    bint by_handle
) noexcept nogil:
    """Make an inode of one lookup, and return its index, or NONE."""
    cdef Header *h = t.header
    cdef uint32_t index
    cdef uint64_t generation
    cdef Inode *inode
    if not has_room(t):
        return NONE
    index = take_inode(t)
    if index == NONE:
        return NONE
    if former != NONE:
        _set_flags(&t.inodes[former], t.inodes[former].flags | REPLACED)
    inode = &t.inodes[index]
    generation = inode.nodeid >> 32 if inode.nodeid else h.epoch
    inode.ino = found.ino
    inode.lookups = 1
    inode.shown_ino = shown_number(t, place, hashed, found.ino)
    store32(&inode.fd, -1 if by_handle else found.fd, RELAXED)  # sweep.pyx may read an old slot
    inode.place = place
    _set_opens(inode, 0)
    inode.backing_id = 0
    inode.type = found.type
    _set_flags(inode, _kept_by(found.handle) if by_handle else 0)
    inode.notes = 0
    _set_told(inode)
    inode.born = h.created + 1
    store32(<int32_t *>&h.created, <int32_t>inode.born, RELEASE)
    if by_handle:
        memcpy(<void *>handle_of(t, inode), found.handle, 8 + found.handle.handle_bytes)
    insert(t, hashed, index)
    count_inodes(h, 1)
    h.most = max(h.most, h.inodes)
    h.descriptors += not by_handle
    count_handles(t, by_handle)
    t.mounts[t.places[place].mount].users += 1
    announce_lookup(j, (generation << 32) | index, 0)
    step_of(t, GRANTING)
    store64(&inode.nodeid, (generation << 32) | index, RELEASE)
    show(t)
    return index


cdef inline int _kept_by(const FileHandle *handle) noexcept nogil:
    return BY_HANDLE | LONG_HANDLE if handle.handle_bytes > SHORT_HANDLE else BY_HANDLE


cdef inline uint32_t _noted(const Inode *inode) noexcept nogil:
    return <uint32_t>load32(<const int32_t *>&inode.notes, ACQUIRE)


cdef inline void _set_opens(Inode *inode, uint32_t opens) noexcept nogil:
    store32(<int32_t *>&inode.opens, <int32_t>opens, RELEASE)  # read without the mutex, too


cdef inline void _set_told(Inode *inode) noexcept nogil:
    store32(<int32_t *>&inode.told, <int32_t>milliseconds(), RELAXED)


cdef void _set_flags(Inode *inode, int flags) noexcept nogil:
    store16(&inode.flags, <uint16_t>flags, RELEASE)


cdef void forget(
    Tables *t, Journal *j, uint64_t nodeid, uint64_t count, Gone *gone
) noexcept nogil:
    """Give lookups back; an inode that has neither lookups nor opens any more is gone.

    `gone.notes`: the inode stays for this open file, which the caller of `forget` releases.
    """
    cdef Inode *inode
    gone[0] = _nothing_gone()
    pthread_mutex_lock(&t.mutex)
    inode = inode_of(t, nodeid) if nodeid != ROOT_INDEX else NULL
    announce_forget(j, nodeid, inode.lookups if inode != NULL else 0)
    if inode != NULL:
        step_of(t, FORGETTING)
        _give_back(t, inode, count, gone)
        step_of(t, FORGOTTEN)
    note_settled(j)
    pthread_mutex_unlock(&t.mutex)


cdef void take_back(Tables *t, Journal *j, uint64_t nodeid, Gone *gone) noexcept nogil:
    """Give the lookup back that the request in hand has counted last; otherwise as `forget`."""
    cdef Inode *inode
    gone[0] = _nothing_gone()
    pthread_mutex_lock(&t.mutex)
    inode = inode_of(t, nodeid) if nodeid != ROOT_INDEX else NULL
    if inode != NULL and inode.lookups:
        announce_return(j, nodeid, inode.lookups - 1)
        _give_back(t, inode, 1, gone)
        end_return(j)
    pthread_mutex_unlock(&t.mutex)


cdef void _give_back(Tables *t, Inode *inode, uint64_t count, Gone *gone) noexcept nogil:
    inode.lookups -= min(count, inode.lookups)
    if not inode.lookups:
        # Under the mutex: once another thread has granted the inode anew, requests may come.
        gone.notes = exchange_notes(&inode.notes, 0, ACQUIRE)
    _leave(t, inode, gone)


cdef Gone _nothing_gone() noexcept nogil:
    return Gone(fd=-1, mount_fd=-1, gone=False, notes=0)


cdef void _leave(Tables *t, Inode *inode, Gone *gone) noexcept nogil:
    """Remove the inode, if the kernel neither knows it nor has it open."""
    cdef uint32_t index = <uint32_t>inode.nodeid
    if inode.lookups or inode.opens:
        return
    take_out(t, hash_of(inode.place, inode.ino), index)
    gone.gone = True
    gone.fd = inode.fd
    count_inodes(t.header, -1)
    t.header.descriptors -= not inode.flags & BY_HANDLE
    if inode.flags & BY_HANDLE:
        count_handles(t, -1)
        t.header.pins -= inode.fd >= 0
    gone.mount_fd = drop_mount(t, t.places[inode.place].mount)
    free_inode(t, index)
    show(t)


cdef int find(Tables *t, uint32_t place, uint64_t ino, Granted *out) noexcept nogil:
    """Find the inode that has a number: KNOWN, NEEDS_HANDLE if the handle decides, -ENOENT."""
    cdef uint32_t index
    cdef int result = -ENOENT
    pthread_mutex_lock(&t.mutex)
    index = current(t, hash_of(place, ino), place, ino)
    if index != NONE:
        out.nodeid = t.inodes[index].nodeid
        out.shown_ino = t.inodes[index].shown_ino
        result = NEEDS_HANDLE if t.inodes[index].flags & BY_HANDLE else KNOWN
    pthread_mutex_unlock(&t.mutex)
    return result


cdef bint pin(Tables *t, const Found *found) noexcept nogil:
    """Have a file that was removed keep its number until it is forgotten, if it is BY_HANDLE.

    Return whether the descriptor was taken. Beyond `Limits.pins` it is not: FORGET may come long
    after the removal, and descriptors are few.
    """
    cdef uint32_t place, index
    cdef Inode *inode
    cdef bint taken = False
    pthread_mutex_lock(&t.mutex)
    place = place_of(t, found)
    index = current(t, hash_of(place, found.ino), place, found.ino)
    inode = &t.inodes[index]
    if index != NONE and inode.flags & BY_HANDLE and inode.fd < 0 and found.handle != NULL:
        if _may_pin(t) and _is_handle_of(t, index, found.handle):
            store32(&inode.fd, found.fd, RELEASE)
            t.header.pins += 1
            taken = True
    pthread_mutex_unlock(&t.mutex)
    return taken


cdef bint _may_pin(const Tables *t) noexcept nogil:
    return not t.header.limits.pins or t.header.pins < t.header.limits.pins


# Open files


cdef int open_add(
    Tables *t, Journal *j, int table, uint64_t nodeid, const OpenFile *made, int32_t backing_id,
    uint64_t *fh, int32_t *in_force
) noexcept nogil:
    """Add an open file with the descriptors (or -1), flags and kind of `made`, which it then owns.

    The first open of an inode decides on its backing id, for all until the last one is released:
    the kernel refuses a second id, and a mix. `in_force` is what was decided. -EAGAIN: this is the
    first open, and `backing_id` is UNDECIDED. -ESTALE, -ENFILE.
    """
    cdef Inode *inode
    cdef OpenFile *file
    cdef uint32_t index
    cdef int result = 0
    pthread_mutex_lock(&t.mutex)
    inode = inode_of(t, nodeid)
    if inode == NULL:
        result = -ESTALE
    elif not inode.opens and backing_id == UNDECIDED:
        result = -EAGAIN
    else:
        index = take_open(t, table)
        if index == NONE:
            result = -ENFILE
        else:
            file = &t.opens[table][index]
            store64(&file.nodeid, nodeid, RELEASE)  # read without the mutex, by `open_for_writing`
            store32(&file.fd, made.fd, RELAXED)  # and by `read_attributes`
            file.twin = made.twin
            file.flags = made.flags
            store32(<int32_t *>&file.kind, <int32_t>made.kind, RELEASE)
            if not inode.opens:
                store32(&inode.backing_id, backing_id, RELEASE)
                t.passing += backing_id != 0
            _set_opens(inode, inode.opens + 1)
            _set_flags(inode, inode.flags & ~LISTED)
            count_opens(t, table, made.kind, made.fd >= 0)
            fh[0] = (file.fh >> 32 << 32) | index
            in_force[0] = inode.backing_id
            announce_open(j, table, fh[0])
            step_of(t, OPENING)
            store64(&file.fh, fh[0], RELEASE)
            step_of(t, OPENED)
            show(t)
    pthread_mutex_unlock(&t.mutex)
    return result


cdef int open_release(
    Tables *t, Journal *j, int table, uint64_t fh, Released *out
) noexcept nogil:
    """Take an open file out; the caller closes what `out` has.

    -EBADF: there is none, or the inode's `notes` have it. The kernel knows no such fh.
    """
    cdef OpenFile *file
    cdef Inode *inode = NULL
    out.backing_id = 0
    out.gone = _nothing_gone()
    pthread_mutex_lock(&t.mutex)
    file = open_get(t, table, fh)
    if file != NULL:
        inode = inode_of(t, file.nodeid)
    if file == NULL or (inode != NULL and _noted(inode) == <uint32_t>fh):
        pthread_mutex_unlock(&t.mutex)
        return -EBADF
    out.fd = file.fd
    out.twin = load32(&file.twin, ACQUIRE)
    out.nodeid = file.nodeid
    if inode != NULL and inode.opens == 1 and inode.backing_id:
        note_backing(j, inode.backing_id)
    free_open(t, table, file, <uint32_t>fh)
    count_opens(t, table, file.kind, -(out.fd >= 0))
    if inode != NULL:
        _set_opens(inode, inode.opens - 1)
        if not inode.opens:
            out.backing_id = inode.backing_id
            t.passing -= inode.backing_id != 0
            store32(&inode.backing_id, 0, RELEASE)
            _set_flags(inode, inode.flags & ~PRIVILEGED)
        _leave(t, inode, &out.gone)
    show(t)
    pthread_mutex_unlock(&t.mutex)
    return 0


cdef void set_privileged(Tables *t, uint64_t nodeid) noexcept nogil:
    """Note that an open inode has been given suid or sgid bits, until its last open is released."""
    cdef Inode *inode
    pthread_mutex_lock(&t.mutex)
    inode = inode_of(t, nodeid)
    if inode != NULL and inode.opens:
        _set_flags(inode, inode.flags | PRIVILEGED)
    pthread_mutex_unlock(&t.mutex)


cdef void set_listed(Tables *t, uint64_t nodeid) noexcept nogil:
    """Note that a listing has given the last lookup of an inode, with its attributes."""
    cdef Inode *inode
    pthread_mutex_lock(&t.mutex)
    inode = inode_of(t, nodeid)
    if inode != NULL and not inode.opens:
        _set_flags(inode, inode.flags | LISTED)
    pthread_mutex_unlock(&t.mutex)
