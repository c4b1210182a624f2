"""Free slots, and the hash from place and st_ino to inodes; all under the tables' mutex.

One reader of the hash has no mutex (sweep.pyx). So each store to the hash is whole, and no entry is
ever seen in part.

The hash has open addressing: an entry lies at its hash's position or behind it, with no gap
between. It has an inode's hash in the upper half, so that most comparisons touch no inode.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from passthrough.core.layout cimport (
    BLOCK,
    COUNTED_BIT,
    FILES,
    NONE,
    RELAXED,
    RELEASE,
    REPLACED,
    ROOT_INDEX,
    USER_SHIFT,
    USERS,
    Header,
    Inode,
    OpenFile,
    Tables,
    pthread_mutex_t,
    shown_in,
    store32,
    store64,
)

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)


cdef enum:
    FIRST_HASH = 1 << 9  # entries: a page


# Free slots


cdef inline void free_inode(Tables *t, uint32_t index) noexcept nogil:
    """Take a slot back, if it was live; its next use is of the next generation."""
    cdef Inode *inode = &t.inodes[index]
    if <uint32_t>inode.nodeid != NONE:
        store64(&inode.nodeid, ((inode.nodeid >> 32) + 1) << 32, RELEASE)
    store32(<int32_t *>&inode.told, <int32_t>t.header.free_inode, RELAXED)  # a listing may read it
    t.header.free_inode = index


cdef inline uint32_t take_inode(Tables *t) noexcept nogil:
    """Return a free slot that is in no list any more, or NONE."""
    cdef Header *h = t.header
    cdef uint32_t index = h.free_inode
    cdef uint32_t start
    if index == NONE and t.hole_count:
        t.hole_count -= 1
        start = t.holes[t.hole_count] * BLOCK
        for index in range(start + BLOCK - 1, start - 1, -1):
            free_inode(t, index)
        index = h.free_inode
    if index != NONE:
        h.free_inode = t.inodes[index].told
        return index
    if h.inode_end >= h.limits.inodes:
        return NONE
    store32(<int32_t *>&h.inode_end, <int32_t>(h.inode_end + 1), RELAXED)
    return h.inode_end - 1


cdef inline void count_inodes(Header *h, int change) noexcept nogil:
    store32(<int32_t *>&h.inodes, <int32_t>h.inodes + change, RELAXED)  # read without the mutex


cdef inline void count_handles(Tables *t, int change) noexcept nogil:
    cdef int32_t *count = <int32_t *>&t.header.by_handle
    store32(count, count[0] + change, RELEASE)


cdef inline void count_opens(
    Tables *t, int table, uint32_t kind, int change
) noexcept nogil:
    """Count a descriptor of an open file, in all and for its group of users."""
    cdef int32_t *count = <int32_t *>&t.header.opens[table]
    store32(count, count[0] + change, RELAXED)
    count = &t.users[kind >> USER_SHIFT & (USERS - 1)]
    store32(count, count[0] + change, RELAXED)


cdef inline void free_open(Tables *t, int table, OpenFile *file, uint32_t index) noexcept nogil:
    """Take a slot back, if it was live."""
    if <uint32_t>file.fh != NONE:
        store64(&file.fh, ((file.fh >> 32) + 1) << 32, RELEASE)
    store64(&file.nodeid, t.header.free_open[table], RELEASE)
    t.header.free_open[table] = index


cdef inline uint32_t take_open(Tables *t, int table) noexcept nogil:
    """Return a free slot that is in no list any more, or NONE."""
    cdef Header *h = t.header
    cdef uint32_t index = h.free_open[table]
    if index != NONE:
        h.free_open[table] = <uint32_t>t.opens[table][index].nodeid
        return index
    if h.open_end[table] >= h.limits.opens[table]:
        return NONE
    store32(<int32_t *>&h.open_end[table], <int32_t>(h.open_end[table] + 1), RELAXED)
    return h.open_end[table] - 1


# The hash


cdef inline uint32_t hash_of(uint32_t place, uint64_t ino) noexcept nogil:
    """Mix all bits; the upper ones of a product are the good ones."""
    cdef uint64_t mixed = (ino ^ (<uint64_t>place << 40)) * 0x9E3779B97F4A7C15ULL
    mixed ^= mixed >> 32
    return <uint32_t>((mixed * 0xD6E8FEB86659FD93ULL) >> 32)


cdef inline void insert(Tables *t, uint32_t hashed, uint32_t index) noexcept nogil:
    """Add an entry; there must be room."""
    cdef uint64_t mask = t.header.hash_mask
    cdef uint64_t at = hashed & mask
    while t.hash[at]:
        at = (at + 1) & mask
    store64(&t.hash[at], (<uint64_t>hashed << 32) | index, RELAXED)
    t.header.hash_used += 1


cdef inline void take_out(Tables *t, uint32_t hashed, uint32_t index) noexcept nogil:
    """Remove an entry; those behind it move up, so that none has a gap before it."""
    cdef uint64_t mask = t.header.hash_mask
    cdef uint64_t at = hashed & mask
    cdef uint64_t entry = (<uint64_t>hashed << 32) | index
    cdef uint64_t behind
    while t.hash[at] != entry:
        if not t.hash[at]:
            return
        at = (at + 1) & mask
    behind = at
    while True:
        behind = (behind + 1) & mask
        entry = t.hash[behind]
        if not entry:
            break
        # It may move if its own position does not lie between the gap and it.
        if ((behind - (entry >> 32)) & mask) >= ((behind - at) & mask):
            store64(&t.hash[at], entry, RELAXED)
            at = behind
    store64(&t.hash[at], 0, RELAXED)
    t.header.hash_used -= 1


cdef inline uint32_t current(
    Tables *t, uint32_t hashed, uint32_t place, uint64_t ino
) noexcept nogil:
    """Return the index of the inode that has the number in this place now, or NONE."""
    cdef uint64_t mask = t.header.hash_mask
    cdef uint64_t at = hashed & mask
    cdef const Inode *inode
    while t.hash[at]:
        if t.hash[at] >> 32 == hashed:
            inode = &t.inodes[<uint32_t>t.hash[at]]
            if inode.ino == ino and inode.place == place and not inode.flags & REPLACED:
                return <uint32_t>t.hash[at]
        at = (at + 1) & mask
    return NONE


cdef inline bint is_shown(Tables *t, uint32_t hashed, uint64_t number) noexcept nogil:
    """Return whether a live inode shows this number; only one of the same hash can."""
    cdef uint64_t mask = t.header.hash_mask
    cdef uint64_t at = hashed & mask
    while t.hash[at]:
        if t.hash[at] >> 32 == hashed and t.inodes[<uint32_t>t.hash[at]].shown_ino == number:
            return True
        at = (at + 1) & mask
    return False


cdef inline uint64_t hash_entries(Tables *t, uint64_t least) noexcept nogil:
    """Return how many entries the hash needs for the inodes, and for half as many more."""
    cdef uint64_t entries = least
    while entries < t.header.offsets.hash_entries and entries < <uint64_t>t.header.inodes * 2:
        entries *= 2
    return min(entries, t.header.offsets.hash_entries)


cdef inline void fill_hash(Tables *t, uint64_t entries) noexcept nogil:
    """Fill the hash anew from the slots."""
    cdef Header *h = t.header
    cdef uint32_t index
    cdef uint64_t at
    store64(&h.hash_mask, entries - 1, RELAXED)
    h.hash_used = 0
    t.hash_end = max(t.hash_end, entries)
    for at in range(entries):
        store64(&t.hash[at], 0, RELAXED)
    for index in range(1, h.inode_end):
        if <uint32_t>t.inodes[index].nodeid == index:
            insert(t, hash_of(t.inodes[index].place, t.inodes[index].ino), index)


cdef inline bint has_room(Tables *t) noexcept nogil:
    """Return whether the hash takes one more entry; it grows when it is full to three quarters."""
    cdef Header *h = t.header
    cdef uint64_t entries = h.hash_mask + 1
    if (<uint64_t>h.hash_used + 1) * 4 <= entries * 3:
        return True
    if entries * 2 > t.hash_room:
        return h.hash_used + 1 < entries
    fill_hash(t, entries * 2)
    return True


cdef inline uint64_t shown_number(
    Tables *t, uint32_t place, uint32_t hashed, uint64_t ino
) noexcept nogil:
    """Return the number that users are to see of a new inode."""
    cdef uint64_t number = shown_in(t, place, ino)
    if number > ROOT_INDEX and not is_shown(t, hashed, number):
        return number
    t.header.counted += 1
    return (<uint64_t>1 << COUNTED_BIT) | t.header.counted
