"""Memory of the tables: made, mapped, recovered after a death, and given back."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset

from passthrough.core cimport libc
from passthrough.core.counters cimport show
from passthrough.core.shared cimport make_memory
from passthrough.core.slots cimport (
    FIRST_HASH, fill_hash, free_inode, free_open, hash_entries, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock,
)
from passthrough.core.layout cimport (
    BLOCK, BY_HANDLE, DIRECTORIES, FILES, MAX_HANDLE, NO_PLACE, NONE, OPEN_TABLES, PRIVILEGED,
    RELAXED, RELEASE, ROOT_INDEX, SHORT_ROOM, SOURCE_PLACE, USER_SHIFT, USERS, Found, Header, Inode,
    Limits, Mount, Offsets, OpenFile, Place, Tables, inode_of, shown_in, store32, store64,
)

cdef enum:
    VERSION = 4
    PAGE = 4096
    # A table that once held more than this shrinks when it is down to one part in so many.
    LARGE = 10000
    SHRINK = 8
    TRIMMED_HASH = 1 << 13  # entries that are left at least; the memory of twice as many stays
    PIECE = 1 << 17  # entries of the hash whose memory goes back at once: 1 MiB


# Layout


cdef uint64_t _pages(uint64_t size) noexcept nogil:
    return (size + PAGE - 1) // PAGE * PAGE


cdef uint32_t _handle_size(const Limits *limits) noexcept nogil:
    return 8 + (limits.handle_bytes + 7) // 8 * 8


cdef bint _lay_out(const Limits *limits, Offsets *o) noexcept nogil:
    """Compute where the arrays begin; false if the limits make no sense."""
    cdef uint64_t end = _pages(sizeof(Header))
    cdef uint64_t entries = FIRST_HASH
    if limits.inodes < 2 * BLOCK or limits.inodes > 1u << 28 or limits.handle_bytes > MAX_HANDLE:
        return False
    if not 0 < limits.places < NO_PLACE or limits.first_place > 1:
        return False
    if not 1 < limits.opens[FILES] < 1u << 28 or not 1 < limits.opens[DIRECTORIES] < 1u << 28:
        return False
    while entries * 3 < <uint64_t>limits.inodes * 4:
        entries *= 2
    o.inodes = end
    o.short_handles = o.inodes + _pages(<uint64_t>limits.inodes * sizeof(Inode))
    o.handles = o.short_handles + _pages(<uint64_t>limits.inodes * SHORT_ROOM)
    o.opens[FILES] = o.handles + _pages(<uint64_t>limits.inodes * _handle_size(limits))
    o.opens[DIRECTORIES] = o.opens[FILES] + _pages(<uint64_t>limits.opens[FILES] * sizeof(OpenFile))
    o.places = o.opens[DIRECTORIES] + _pages(
        <uint64_t>limits.opens[DIRECTORIES] * sizeof(OpenFile)
    )
    o.mounts = o.places + _pages(<uint64_t>limits.places * sizeof(Place))
    o.hash = o.mounts + _pages(<uint64_t>limits.places * sizeof(Mount))
    o.hash_entries = entries
    o.size = o.hash + _pages(entries * sizeof(uint64_t))
    return True


cdef Tables *_map(int fd, uint64_t size, int *error) noexcept nogil:
    cdef Tables *t = <Tables *>calloc(1, sizeof(Tables))
    cdef void *start
    if t == NULL:
        error[0] = libc.ENOMEM
        return NULL
    start = libc.mmap(
        NULL, size, libc.PROT_READ | libc.PROT_WRITE, libc.MAP_SHARED | libc.MAP_NORESERVE, fd, 0
    )
    if start == libc.MAP_FAILED:
        error[0] = libc.errno
        free(t)
        return NULL
    t.header = <Header *>start
    t.fd = fd
    pthread_mutex_init(&t.mutex, NULL)
    return t


cdef void _point(Tables *t) noexcept nogil:
    cdef char *start = <char *>t.header
    cdef const Offsets *o = &t.header.offsets
    cdef int table
    t.inodes = <Inode *>(start + o.inodes)
    t.short_handles = start + o.short_handles
    t.handles = start + o.handles
    for table in range(OPEN_TABLES):
        t.opens[table] = <OpenFile *>(start + o.opens[table])
    t.places = <Place *>(start + o.places)
    t.mounts = <Mount *>(start + o.mounts)
    t.hash = <uint64_t *>(start + o.hash)
    t.handle_size = _handle_size(&t.header.limits)


cdef Tables *create(
    const Limits *limits, uint64_t mount_id, int mount_fd, const Found *root, int *error
) noexcept nogil:
    """Make tables with the root of the source; they own its descriptor and `mount_fd` (or -1).

    If NULL is returned, `error` has the errno, and the descriptors stay the caller's.
    """
    cdef Offsets offsets
    cdef Tables *t
    cdef Header *h
    cdef Inode *inode
    cdef int fd
    memset(&offsets, 0, sizeof(offsets))
    if not _lay_out(limits, &offsets):
        error[0] = libc.EINVAL
        return NULL
    fd = make_memory("passfs-tables", offsets.size)
    if fd < 0:
        error[0] = -fd
        return NULL
    t = _map(fd, offsets.size, error)
    if t == NULL:
        libc.close(fd)
        return NULL
    h = t.header
    h.limits = t.limits = limits[0]
    h.offsets = offsets
    _point(t)
    h.version = VERSION
    h.header_size = sizeof(Header)
    h.inode_end = ROOT_INDEX + 1
    h.open_end[FILES] = h.open_end[DIRECTORIES] = 1
    t.mounts[0] = Mount(id=mount_id, users=0, fd=mount_fd)
    t.places[SOURCE_PLACE] = Place(device=root.device, mount=0, spare=0)
    h.mounts = h.places = 1
    inode = &t.inodes[ROOT_INDEX]
    inode.ino = root.ino
    inode.lookups = 1  # never counted: the kernel holds the root without having looked it up
    inode.shown_ino = shown_in(t, SOURCE_PLACE, root.ino)
    inode.fd = root.fd
    inode.type = root.type
    inode.nodeid = ROOT_INDEX
    recover(t)
    t.hash_end = FIRST_HASH
    store64(&h.magic, 0x7061737366733134ULL, RELEASE)
    return t


cdef Tables *adopt(int fd, int *error) noexcept nogil:
    """Map the tables in `fd`, a memfd that then belongs to them; `recover` has to follow.

    Not before their owner is dead. EPROTO: they are not of this version. If NULL is returned, `fd`
    stays the caller's.
    """
    cdef Tables *t
    cdef libc.struct_stat st
    if libc.fstat(fd, &st) < 0:
        error[0] = libc.errno
        return NULL
    error[0] = libc.EPROTO
    if st.st_size < <int64_t>sizeof(Header):
        return NULL
    t = _map(fd, <uint64_t>st.st_size, error)
    if t == NULL:
        return NULL
    t.limits = t.header.limits
    if not is_head_sound(t) or t.header.offsets.size != <uint64_t>st.st_size:
        libc.munmap(<void *>t.header, <size_t>st.st_size)
        free(t)
        return NULL
    _point(t)
    error[0] = 0
    return t


cdef bint is_head_sound(const Tables *t) noexcept nogil:
    """Return whether tables are of this version, laid out as ever, and no end is out of range."""
    cdef const Header *h = t.header
    cdef Limits limits = t.limits
    cdef Offsets offsets
    memset(&offsets, 0, sizeof(offsets))
    limits.spare = h.limits.spare  # steps.pxd
    return (
        h.magic == 0x7061737366733134ULL
        and h.version == VERSION
        and h.header_size == sizeof(Header)
        and memcmp(&limits, &h.limits, sizeof(limits)) == 0
        and _lay_out(&limits, &offsets)
        and memcmp(&offsets, &h.offsets, sizeof(offsets)) == 0
        and ROOT_INDEX < h.inode_end <= limits.inodes
        and 0 < h.open_end[FILES] <= limits.opens[FILES]
        and 0 < h.open_end[DIRECTORIES] <= limits.opens[DIRECTORIES]
        and 0 < h.mounts <= limits.places
        and 0 < h.places <= limits.places
    )


cdef void detach(Tables *t) noexcept nogil:
    """Unmap the tables and close their memory; the descriptors in them are not closed."""
    cdef int fd = t.fd
    libc.munmap(<void *>t.header, t.header.offsets.size)
    free(t.holes)
    free(t)
    libc.close(fd)


cdef void recover(Tables *t) noexcept nogil:
    """Make everything derived anew, with a mutex of this process's own.

    A process that has inherited the mapping calls this when the owner is dead.
    """
    cdef Header *h = t.header
    cdef Inode *inode
    cdef OpenFile *file
    cdef uint32_t index
    cdef int table
    pthread_mutex_init(&t.mutex, NULL)
    t.hole_count = 0
    t.trimming = False
    t.hash_room = t.hash_end = h.offsets.hash_entries
    memset(t.users, 0, sizeof(t.users))
    for index in range(h.mounts):
        t.mounts[index].users = 0
    for index in range(1, h.inode_end):
        t.inodes[index].opens = 0
    for table in range(OPEN_TABLES):
        h.opens[table] = 0
        h.free_open[table] = NONE
        for index in range(h.open_end[table] - 1, 0, -1):
            file = &t.opens[table][index]
            inode = inode_of(t, file.nodeid) if <uint32_t>file.fh == index else NULL
            if inode != NULL:
                inode.opens += 1
                h.opens[table] += file.fd >= 0
                t.users[file.kind >> USER_SHIFT & (USERS - 1)] += file.fd >= 0
            else:
                free_open(t, table, file, index)
    _recover_inodes(t)
    show(t)
    fill_hash(t, hash_entries(t, FIRST_HASH))


cdef void _recover_inodes(Tables *t) noexcept nogil:
    cdef Header *h = t.header
    cdef Inode *inode
    cdef uint32_t index
    h.inodes = h.descriptors = h.by_handle = h.pins = t.passing = 0
    h.free_inode = NONE
    for index in range(h.inode_end - 1, 0, -1):
        inode = &t.inodes[index]
        if <uint32_t>inode.nodeid == index and (inode.lookups or inode.opens):
            h.inodes += 1
            h.descriptors += index != ROOT_INDEX and not inode.flags & BY_HANDLE
            if inode.flags & BY_HANDLE:
                h.by_handle += 1
                h.pins += inode.fd >= 0
            t.mounts[t.places[inode.place].mount].users += 1
            t.passing += inode.opens != 0 and inode.backing_id != 0
            if not inode.opens:
                inode.backing_id = 0
                inode.notes = 0
                inode.flags &= ~PRIVILEGED
        else:
            free_inode(t, index)
    for index in range(h.mounts):
        if not t.mounts[index].users:
            t.mounts[index].fd = -1  # for the sweep to close
    h.most = h.inode_end  # even holes have memory now, for `trim` to give back


cdef void rebuild_hash(Tables *t) noexcept nogil:
    """Fill the hash anew from the slots."""
    pthread_mutex_lock(&t.mutex)
    fill_hash(t, t.header.hash_mask + 1)
    pthread_mutex_unlock(&t.mutex)


# Memory given back


cdef void trim(Tables *t) noexcept nogil:
    """Give memory back, if most of what the tables held is gone; for quiet moments."""
    cdef Header *h = t.header
    cdef uint32_t *holes
    cdef uint32_t count, limit
    pthread_mutex_lock(&t.mutex)
    if t.trimming or h.most <= LARGE or h.inodes >= h.most // SHRINK:
        pthread_mutex_unlock(&t.mutex)
        return
    t.trimming = True
    limit = h.inode_end // BLOCK + 1
    pthread_mutex_unlock(&t.mutex)

    holes = <uint32_t *>calloc(limit, sizeof(uint32_t))
    if holes == NULL:
        limit = 0  # the hash shrinks all the same

    pthread_mutex_lock(&t.mutex)
    count = _find_holes(t, holes, limit)
    if hash_entries(t, TRIMMED_HASH) <= h.hash_mask:
        fill_hash(t, hash_entries(t, TRIMMED_HASH))
    pthread_mutex_unlock(&t.mutex)

    _shorten(t)
    _give_back(t, holes, count)  # nothing takes a slot of a hole as long as hole_count is 0

    pthread_mutex_lock(&t.mutex)
    while count and h.inode_end == (holes[count - 1] + 1) * BLOCK:
        count -= 1
        store32(<int32_t *>&h.inode_end, <int32_t>(h.inode_end - BLOCK), RELAXED)
    t.holes, holes = holes, t.holes
    t.hole_count = count
    h.most = h.inodes
    t.trimming = False
    pthread_mutex_unlock(&t.mutex)
    free(holes)


cdef void _shorten(Tables *t) noexcept nogil:
    """Free the memory behind the hash in pieces, from its end.

    The hash can grow meanwhile, up to the piece that is being freed. What it has grown into, and
    what it will grow into next, stays.
    """
    cdef Header *h = t.header
    cdef uint64_t start, end
    while True:
        pthread_mutex_lock(&t.mutex)
        end = t.hash_end
        start = max(end - min(end, <uint64_t>PIECE), (h.hash_mask + 1) * 2)
        if start >= end:
            break
        t.hash_end = start
        store64(&t.hash_room, start, RELAXED)
        pthread_mutex_unlock(&t.mutex)
        libc.madvise(<void *>(t.hash + start), (end - start) * sizeof(uint64_t), libc.MADV_REMOVE)
    store64(&t.hash_room, h.offsets.hash_entries, RELAXED)
    pthread_mutex_unlock(&t.mutex)


cdef uint32_t _find_holes(Tables *t, uint32_t *holes, uint32_t limit) noexcept nogil:
    """Note the blocks without a live inode, and have the free list pass them by."""
    cdef Header *h = t.header
    cdef uint32_t count = 0
    cdef uint32_t block, index
    store32(
        <int32_t *>&h.inode_end,
        <int32_t>min((h.inode_end + BLOCK - 1) // BLOCK * BLOCK, h.limits.inodes), RELAXED,
    )
    t.hole_count = 0
    h.free_inode = NONE
    for block in range((h.inode_end - 1) // BLOCK + 1):
        if block < limit and (block + 1) * BLOCK <= h.inode_end and _is_empty(t, block):
            holes[count] = block
            count += 1
            for index in range(block * BLOCK, (block + 1) * BLOCK):
                h.epoch = max(h.epoch, t.inodes[index].nodeid >> 32)
            continue
        for index in range(block * BLOCK, min((block + 1) * BLOCK, h.inode_end)):
            if index != NONE and <uint32_t>t.inodes[index].nodeid != index:
                free_inode(t, index)
    return count


cdef bint _is_empty(Tables *t, uint32_t block) noexcept nogil:
    cdef uint32_t index
    for index in range(block * BLOCK, (block + 1) * BLOCK):
        if <uint32_t>t.inodes[index].nodeid != NONE:
            return False
    return True


cdef void _give_back(Tables *t, const uint32_t *holes, uint32_t count) noexcept nogil:
    """Free the pages of these blocks, which are in order; runs of blocks at once."""
    cdef uint32_t first = 0
    cdef uint32_t end
    while first < count:
        end = first + 1
        while end < count and holes[end] == holes[end - 1] + 1:
            end += 1
        _remove_slots(<char *>t.inodes, sizeof(Inode), holes[first], holes[end - 1] + 1)
        _remove_slots(t.short_handles, SHORT_ROOM, holes[first], holes[end - 1] + 1)
        _remove_slots(t.handles, t.handle_size, holes[first], holes[end - 1] + 1)
        first = end


cdef void _remove_slots(char *start, uint64_t size, uint64_t block, uint64_t end) noexcept nogil:
    """Free the whole pages of some blocks; if that fails, the slots are as good as before."""
    cdef uint64_t first = _pages(block * BLOCK * size)
    end = end * BLOCK * size // PAGE * PAGE
    if first < end:
        libc.madvise(<void *>(start + first), end - first, libc.MADV_REMOVE)
