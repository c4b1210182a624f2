"""Descriptors and ids of FUSE passthrough that a dead worker had, and no table has.

**Descriptors.** The table of descriptors outlives the worker. A descriptor of a file that a thread
was about to record, or to close, stays in it. Such a one is found by its number: it is open, and
neither the tables nor the locks have it, nor was it open before the first worker.

**Ids.** The kernel gives them out in order (idr_alloc_cyclic(), fs/fuse/backing.c). A thread that
dies inside of the ioctl(2) has noted the highest id before. So all ids from there up to a new one
are known or lost. An id that was closed already gives ENOENT, and does no harm.
"""

import os

from libc.limits cimport INT_MAX
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc

from passthrough.core.backing cimport close_backing, new_backing
from passthrough.core.layout cimport OPEN_TABLES, Tables, next_inode, next_open
from passthrough.core.libc cimport ENOMEM, F_GETFD, fcntl
from passthrough.core.lock_records cimport Record
from passthrough.core.locks cimport next_record

cdef enum:
    BEYOND = 1024  # the host gives the lowest free number: no lost one is far behind all others
    MOST_IDS = 1024  # looked at; at most so many threads were inside of the call


# A set of descriptors; `size` of them have a bit.
cdef struct Marks:
    uint8_t *bits
    uint32_t size
    int highest
    int known  # a number from here on counts only if it is open: an attacker may have made it up


cdef inline void _mark(Marks *m, int fd) noexcept nogil:
    """Add a descriptor, or note the highest as long as there are no bits."""
    if m.bits != NULL:
        if fd >= 0 and <uint32_t>fd < m.size:
            m.bits[fd >> 3] |= <uint8_t>(1 << (fd & 7))
    elif fd > m.highest:
        if fd >= m.known:
            if fcntl(fd, F_GETFD) < 0:
                return
            m.known = min(fd, INT_MAX // 2) * 2  # so that few are looked at
        m.highest = fd


cdef void _mark_all(Marks *m, Volume *v, const int *kept, int kept_count) noexcept nogil:
    cdef Tables *t = v.tables
    cdef const Record *record
    cdef uint32_t index
    cdef int at, table
    for at in range(kept_count):
        _mark(m, kept[at])
    _mark(m, t.fd)
    for index in range(t.header.mounts):
        _mark(m, t.mounts[index].fd)
    index = next_inode(t, 0)
    while index:
        _mark(m, t.inodes[index].fd)
        index = next_inode(t, index)
    for table in range(OPEN_TABLES):
        index = next_open(t, table, 0)
        while index:
            _mark(m, t.opens[table][index].fd)
            _mark(m, t.opens[table][index].twin)
            index = next_open(t, table, index)
    index = 0
    record = next_record(v, &index)
    while record != NULL:
        _mark(m, record.described >> 1)
        record = next_record(v, &index)


cdef int find_lost(Volume *v, const int *kept, int kept_count, int **lost) noexcept nogil:
    """Return how many descriptors nothing accounts for, or -ENOMEM; the caller frees `lost`.

    Before this process has threads, which open more.
    """
    cdef Marks m
    cdef uint32_t fd
    cdef int count = 0
    m.bits = NULL
    m.size = 0
    m.highest = m.known = 0
    _mark_all(&m, v, kept, kept_count)
    m.size = <uint32_t>m.highest + BEYOND
    m.bits = <uint8_t *>calloc(m.size // 8 + 1, 1)
    lost[0] = <int *>malloc(m.size * sizeof(int))
    if m.bits == NULL or lost[0] == NULL:
        free(m.bits)
        free(lost[0])
        lost[0] = NULL
        return -ENOMEM
    _mark_all(&m, v, kept, kept_count)
    for fd in range(m.size):
        if not m.bits[fd >> 3] & 1 << (fd & 7) and fcntl(<int>fd, F_GETFD) >= 0:
            lost[0][count] = <int>fd
            count += 1
    free(m.bits)
    return count


cdef dict open_beside(Volume *v):
    """Return the descriptors that are open beside those of tables and locks, with their files."""
    cdef int *found = NULL
    cdef int count = find_lost(v, NULL, 0, &found)
    if count < 0:
        raise MemoryError
    try:
        return {found[index]: _file_of(found[index]) for index in range(count)}
    finally:
        free(found)


cdef list still_open(dict noted):
    """Return the noted descriptors that lead to the same file; others have been closed since."""
    return [fd for fd, file in noted.items() if _file_of(fd) == file]


def _file_of(fd):
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


cdef void close_ids(Volume *v, int32_t *ids, int count, int32_t above) noexcept nogil:
    """Close those of `ids` that no inode has, and all such ids from `above` on; -1: none."""
    cdef int32_t end, number
    cdef int at
    for at in range(count):
        if not _has(v.tables, ids[at]):
            close_backing(v, ids[at])
    if above < 0:
        return
    end = new_backing(v)
    if end <= 0:
        return
    for number in range(max(above, end - 1 - MOST_IDS), end - 1):
        if not _has(v.tables, number + 1):
            close_backing(v, number + 1)
    close_backing(v, end)


cdef bint _has(Tables *t, int32_t number) noexcept nogil:
    cdef uint32_t index = next_inode(t, 0)
    while index:
        if t.inodes[index].backing_id == number:
            return True
        index = next_inode(t, index)
    return False
