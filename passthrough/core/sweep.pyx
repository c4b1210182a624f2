"""Files without a name that the kernel still knows: it is asked to forget them.

The host frees the space of a removed file when nothing has it open. The descriptors of inodes count
as that, for as long as the kernel caches the inode. If the host removes the file, the kernel does
not hear of it. So a sweep looks for such files every 4 s, and asks the kernel to drop them
(NOTIFY_PRUNE, protocol 7.45, Linux 6.18). The kernel drops what no process uses, and sends FORGET.
A directory has to wait for what was in it. So a sweep that has found more than the one before is
soon repeated. An older kernel cannot be asked: the worker only closes what it keeps open itself.

A sweep looks at 32,768 entries of the hash at most, which takes it 10 ms. It uses no lock: what it
reads may be out of date. An inode may have been forgotten meanwhile, and its descriptor may lead to
another file. The kernel decides: it knows no such inode, or drops one that no process uses.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from passthrough.core.layout cimport (
    ACQUIRE, NONE, RELAXED, ROOT_INDEX, Inode, Tables, descriptor, load32, load64, some_by_handle,
)
from passthrough.core.libc cimport (
    CLOCK_MONOTONIC_COARSE, clock_gettime, timespec,
)
from passthrough.core.notify cimport prune
from passthrough.core.recent cimport drop_nameless, is_nameless

cdef enum:
    INTERVAL_MS = 4000
    REPEAT_MS = 500
    MOST = 1 << 15  # entries of the hash in one sweep
    BATCH = 256  # inodes in one notification
    LEAST_MINOR = 45  # of the protocol


cdef int until_sweep(const Volume *v) noexcept nogil:
    """Return after how many ms the next sweep is due, 0: now; -1: there is nothing to look at."""
    cdef int64_t left
    if load32(<const int32_t *>&v.tables.header.inodes, RELAXED) <= 1:
        return -1
    if v.options.minor < LEAST_MINOR and not some_by_handle(v.tables):
        return -1
    left = v.sweep.due_ms - _now_ms()
    return <int>max(left, 0)


cdef int64_t _now_ms() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now)
    return now.tv_sec * 1000 + now.tv_nsec // 1000000


cdef void sweep(Volume *v) noexcept nogil:
    """Ask the kernel to forget files without a name; one thread at a time."""
    cdef Tables *t = v.tables
    cdef uint64_t nodeids[BATCH]
    cdef uint64_t entries = load64(&t.header.hash_mask, RELAXED) + 1
    cdef uint64_t end = min(v.sweep.at + MOST, entries)
    cdef uint32_t count = 0
    cdef uint64_t nodeid
    if v.options.minor < LEAST_MINOR:
        end = 0
    while v.sweep.at < end and count < BATCH:
        nodeid = _nameless(t, <uint32_t>load64(&t.hash[v.sweep.at], RELAXED))
        v.sweep.at += 1
        if nodeid:
            nodeids[count] = nodeid
            count += 1
    drop_nameless(v)
    if count:
        prune(v, nodeids, count)
    v.sweep.found += count
    v.sweep.due_ms = _now_ms() + INTERVAL_MS
    if count == BATCH:
        v.sweep.due_ms = _now_ms()
    elif v.sweep.at >= entries:  # the whole hash has been looked at
        if v.sweep.found > v.sweep.found_before:
            v.sweep.due_ms = _now_ms() + REPEAT_MS
        v.sweep.found_before = v.sweep.found
        v.sweep.at = v.sweep.found = 0


cdef uint64_t _nameless(Tables *t, uint32_t index) noexcept nogil:
    """Return the nodeid of an inode without open files, if its file has no name; otherwise 0."""
    cdef const Inode *inode
    cdef uint64_t nodeid
    cdef int fd
    if index == NONE or index == ROOT_INDEX or index >= t.header.limits.inodes:
        return 0
    inode = &t.inodes[index]
    nodeid = load64(&inode.nodeid, ACQUIRE)
    if <uint32_t>nodeid != index or load32(<const int32_t *>&inode.opens, RELAXED):
        return 0
    fd = descriptor(inode)
    return nodeid if fd >= 0 and is_nameless(fd) else 0
