"""Shared memory as a dead worker has left it, checked before its successor uses it.

An attacker who has taken a worker over can write anything into the memory. Each number by which the
successor finds its way there is checked here: ends of arrays, indexes, counts, lengths. A wrong one
is no accident, so the volume is given up. A process that the attacker has left behind, or a file
whose descriptor is that of this memory, can still change it afterwards: the successor is confined
as its predecessor was.

Not checked is what is no index: numbers of descriptors, nodeids, lookups, times. Some values
are checked where they are used: logs of journals (settle.pyx), replies (resumed.pyx), and marks of
streams (stream_marks.pyx), most of which no request ever asks for. All that is derived is made anew
(memory.pyx).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from passthrough.core.crew cimport MAX_PLACES
from passthrough.core.device cimport PRESENT, REQUEST_ROOM, Head
from passthrough.core.layout cimport (
    BY_HANDLE, DIRECTORIES, FILES, LONG_HANDLE, OPEN_TABLES, ROOT_INDEX, SHORT_HANDLE, Inode,
    OpenFile, Tables, handle_of,
)
from passthrough.core.libc cimport MADV_REMOVE, S_IFDIR, errno, madvise
from passthrough.core.lock_records cimport are_records_sound
from passthrough.core.locks cimport Locks
from passthrough.core.memory cimport is_head_sound

cdef enum:
    PAGE = 4096


cdef const char *find_damage(const Crew *c) noexcept nogil:
    """Return what no worker writes by itself, or NULL."""
    cdef const Tables *t = c.volume.tables
    if not is_head_sound(t):
        return b"the head of the tables"
    if not _are_places_sound(t):
        return b"a place of files"
    if not _are_inodes_sound(t):
        return b"an inode"
    if not _is_room_sound(c.head):
        return b"the room for requests"
    if not are_records_sound(&(<const Locks *>c.volume.locks).table.records):
        return b"a record of locks"
    return NULL


cdef bint _are_places_sound(const Tables *t) noexcept nogil:
    cdef uint32_t index
    for index in range(t.header.places):
        if t.places[index].mount >= t.header.mounts:
            return False
    return True


cdef bint _are_inodes_sound(const Tables *t) noexcept nogil:
    cdef uint32_t index
    cdef const Inode *inode = &t.inodes[ROOT_INDEX]
    if inode.nodeid != ROOT_INDEX or not inode.lookups:
        return False
    for index in range(ROOT_INDEX, t.header.inode_end):
        inode = &t.inodes[index]
        if <uint32_t>inode.nodeid == index and not _is_inode_sound(t, inode):
            return False
    return True


cdef inline bint _is_inode_sound(const Tables *t, const Inode *inode) noexcept nogil:
    cdef int table = DIRECTORIES if inode.type == S_IFDIR else FILES
    if inode.place >= t.header.places or inode.notes >= t.header.open_end[table]:
        return False
    return not inode.flags & BY_HANDLE or _is_handle_sound(t, inode)


cdef bint _is_handle_sound(const Tables *t, const Inode *inode) noexcept nogil:
    cdef uint32_t most = t.header.limits.handle_bytes
    if not inode.flags & LONG_HANDLE:
        most = min(most, <uint32_t>SHORT_HANDLE)
    return handle_of(<Tables *>t, inode).handle_bytes <= most


cdef bint _is_room_sound(const Head *head) noexcept nogil:
    return 0 < head.places <= MAX_PLACES and PRESENT <= head.present <= REQUEST_ROOM


cdef int clear_unused(Tables *t) noexcept nogil:
    """Empty the slots behind those in use, so that none of them looks like a live one; 0, -errno.
    """
    cdef int result = _clear(
        <char *>t.inodes, sizeof(Inode), t.header.inode_end, t.header.limits.inodes
    )
    cdef int table
    for table in range(OPEN_TABLES):
        if result == 0:
            result = _clear(
                <char *>t.opens[table], sizeof(OpenFile), t.header.open_end[table],
                t.header.limits.opens[table],
            )
    return result


cdef int _clear(char *slots, uint64_t size, uint64_t first, uint64_t end) noexcept nogil:
    """Empty the slots from `first` on; an array begins on a page, and the next one on another."""
    cdef uint64_t start = first * size
    cdef uint64_t whole = _pages(start)
    cdef uint64_t stop = _pages(end * size)
    memset(slots + start, 0, whole - start)
    if whole < stop and madvise(slots + whole, stop - whole, MADV_REMOVE) < 0:
        return -errno
    return 0


cdef inline uint64_t _pages(uint64_t size) noexcept nogil:
    return (size + PAGE - 1) // PAGE * PAGE
