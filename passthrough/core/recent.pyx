"""Inodes that are held by file handle and were used last, kept open.

A caller that looks up one name in a directory often looks up the next one, too. A file that was
looked up is opened next, and its handle leads nowhere if the host has removed it by then. So of
such inodes, the 64 used last stay open, or 1/16 of RLIMIT_NOFILE if that is less. One that has lost
its last name is closed a while after its last use, so that the host frees its space.

A descriptor that is lent has users. It is not closed before the last one has given it back, even if
the inode has been forgotten meanwhile.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from passthrough.core.layout cimport ACQUIRE, RELEASE, load32, milliseconds, store32
from passthrough.core.libc cimport (
    AT_EMPTY_PATH, AT_STATX_DONT_SYNC, ENOMEM, STATX_NLINK, close, pthread_mutex_destroy,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, statx,
    struct_statx,
)
from passthrough.core.state cimport Volume

cdef extern from "<sys/resource.h>" nogil:
    ctypedef unsigned long rlim_t
    struct rlimit:
        rlim_t rlim_cur
    int RLIMIT_NOFILE
    int getrlimit(int resource, rlimit *limits)

cdef enum:
    UNUSED_MS = 2000  # from LOOKUP to the request for which it came, on a busy machine, too
    MOST = 64  # more than one walk through a tree holds, and few beside the other descriptors
    SHARE = 16  # of RLIMIT_NOFILE at most


cdef struct Kept:
    int32_t fd  # -1: the slot is free
    uint32_t users
    uint64_t used  # Recent.uses at the last use
    uint32_t used_ms


cdef struct Recent:
    pthread_mutex_t mutex
    int limit
    int32_t open  # slots that are not free; read without the mutex
    uint64_t uses
    uint64_t nodeids[MOST]  # 0: the inode is forgotten, or the slot is free
    Kept kept[MOST]


cdef int recent_open(Volume *v) noexcept nogil:
    cdef Recent *r = <Recent *>calloc(1, sizeof(Recent))
    cdef rlimit limits
    cdef int slot
    if r == NULL:
        return -ENOMEM
    limits.rlim_cur = 0
    getrlimit(RLIMIT_NOFILE, &limits)
    r.limit = <int>min(<rlim_t>MOST, limits.rlim_cur // SHARE)
    for slot in range(MOST):
        r.kept[slot].fd = -1
    pthread_mutex_init(&r.mutex, NULL)
    v.recent = r
    return 0


cdef void recent_close(Volume *v) noexcept nogil:
    """Close all; no thread may use one any more."""
    cdef Recent *r = <Recent *>v.recent
    cdef int slot
    if r == NULL:
        return
    v.recent = NULL
    for slot in range(MOST):
        if r.kept[slot].fd >= 0:
            close(r.kept[slot].fd)
    pthread_mutex_destroy(&r.mutex)
    free(r)


cdef int find_recent(Volume *v, uint64_t nodeid, int *use) noexcept nogil:
    """Return the descriptor of an inode that is open, or -1.

    `use`, from 1 on, is for `leave_recent`; until then the descriptor stays open.
    """
    cdef Recent *r = <Recent *>v.recent
    cdef int slot
    cdef int fd = -1
    if not load32(&r.open, ACQUIRE):
        return -1
    pthread_mutex_lock(&r.mutex)
    slot = _slot_of(r, nodeid)
    if slot >= 0:
        fd = _lend(r, slot)
        use[0] = slot + 1
    pthread_mutex_unlock(&r.mutex)
    return fd


cdef int keep_recent(Volume *v, uint64_t nodeid, int fd, int *use) noexcept nogil:
    """Keep an inode open by `fd`, and lend it. Return the descriptor to use in place of `fd`.

    -1: each slot is in use, and `fd` stays the caller's. Otherwise `fd` belongs to the table. If
    another thread was faster, its descriptor is returned, and `fd` is closed.
    """
    cdef Recent *r = <Recent *>v.recent
    cdef int unused = -1
    cdef int slot
    pthread_mutex_lock(&r.mutex)
    slot = _slot_of(r, nodeid)
    if slot >= 0:
        unused = fd
        fd = r.kept[slot].fd
    else:
        slot = _longest_unused(r)
        if slot >= 0:
            unused = _empty(r, slot)
            r.nodeids[slot] = nodeid
            r.kept[slot].fd = fd
            store32(&r.open, r.open + 1, RELEASE)
        else:
            fd = -1
    if slot >= 0:
        _lend(r, slot)
        use[0] = slot + 1
    pthread_mutex_unlock(&r.mutex)
    if unused >= 0:
        close(unused)
    return fd


cdef void leave_recent(Volume *v, int use) noexcept nogil:
    """Give back what `find_recent` or `keep_recent` has lent."""
    cdef Recent *r = <Recent *>v.recent
    cdef int slot = use - 1
    cdef int unused = -1
    pthread_mutex_lock(&r.mutex)
    r.kept[slot].users -= 1
    if not r.kept[slot].users and not r.nodeids[slot]:
        unused = _empty(r, slot)
    pthread_mutex_unlock(&r.mutex)
    if unused >= 0:
        close(unused)


cdef bint is_nameless(int fd) noexcept nogil:
    """Return whether the file behind a descriptor has lost its last name; asks no server."""
    cdef struct_statx found
    cdef int how = AT_EMPTY_PATH | AT_STATX_DONT_SYNC
    return statx(fd, b"", how, STATX_NLINK, &found) == 0 and not found.stx_nlink


cdef void drop_nameless(Volume *v) noexcept nogil:
    """Close what has lost its last name and is used no more, so that the host frees its space."""
    cdef Recent *r = <Recent *>v.recent
    cdef uint64_t used
    cdef int slot, fd
    for slot in range(r.limit):
        fd = -1
        pthread_mutex_lock(&r.mutex)
        used = r.kept[slot].used
        if r.nodeids[slot] and milliseconds() - r.kept[slot].used_ms >= UNUSED_MS:
            r.kept[slot].users += 1  # no use that counts: it would begin the time anew
            fd = r.kept[slot].fd
        pthread_mutex_unlock(&r.mutex)
        if fd < 0:
            continue
        if is_nameless(fd):
            pthread_mutex_lock(&r.mutex)
            if r.kept[slot].used == used:
                r.nodeids[slot] = 0  # the last user closes it
            pthread_mutex_unlock(&r.mutex)
        leave_recent(v, slot + 1)


cdef void drop_recent(Volume *v, uint64_t nodeid) noexcept nogil:
    """Keep an inode open no longer: the kernel has forgotten it."""
    cdef Recent *r = <Recent *>v.recent
    cdef int unused = -1
    cdef int slot
    if not load32(&r.open, ACQUIRE):
        return
    pthread_mutex_lock(&r.mutex)
    slot = _slot_of(r, nodeid)
    if slot >= 0:
        r.nodeids[slot] = 0
        if not r.kept[slot].users:
            unused = _empty(r, slot)
    pthread_mutex_unlock(&r.mutex)
    if unused >= 0:
        close(unused)


# Under the mutex


cdef int _slot_of(Recent *r, uint64_t nodeid) noexcept nogil:
    cdef int slot
    for slot in range(r.limit):
        if r.nodeids[slot] == nodeid:
            return slot
    return -1


cdef int _lend(Recent *r, int slot) noexcept nogil:
    r.uses += 1
    r.kept[slot].used = r.uses
    r.kept[slot].used_ms = milliseconds()
    r.kept[slot].users += 1
    return r.kept[slot].fd


cdef int _longest_unused(const Recent *r) noexcept nogil:
    """Return a free slot, else the one that has no user and was used before all others, or -1."""
    cdef int found = -1
    cdef int slot
    for slot in range(r.limit):
        if r.kept[slot].fd < 0:
            return slot
        if not r.kept[slot].users and (found < 0 or r.kept[slot].used < r.kept[found].used):
            found = slot
    return found


cdef int _empty(Recent *r, int slot) noexcept nogil:
    """Free a slot; return the descriptor to close after the mutex, or -1."""
    cdef int fd = r.kept[slot].fd
    if fd >= 0:
        store32(&r.open, r.open - 1, RELEASE)
    r.kept[slot].fd = -1
    r.nodeids[slot] = 0
    return fd
