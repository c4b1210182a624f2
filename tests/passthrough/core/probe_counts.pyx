"""Counts what a volume holds, and the most threads that it may have."""

from libc.stdint cimport uint32_t

from passthrough.core.crew cimport MAX_PARKED, MAX_THREADS
from passthrough.core.face cimport Core
from passthrough.core.layout cimport DIRECTORIES, FILES, Inode, Tables
from passthrough.core.libc cimport S_IFDIR
from passthrough.core.locks cimport Locks
from passthrough.core.state cimport Volume
from passthrough.core.waits cimport MOST_WAITS

THREADS = MAX_THREADS
PARKED = MAX_PARKED
WAITS = MOST_WAITS


def held(Core core):
    """Return the number of each thing that requests may leave behind, by name."""
    cdef Volume *v = core._volume
    cdef Tables *t = v.tables
    cdef const Inode *inode
    cdef uint32_t index
    unopened = [0, 0]
    lookups = backed = 0
    for index in range(1, t.header.inode_end):
        inode = &t.inodes[index]
        if <uint32_t>inode.nodeid != index:
            continue
        lookups += inode.lookups
        backed += inode.opens > 0 and inode.backing_id > 0
        unopened[inode.type == S_IFDIR] += inode.notes != 0
    return {
        "inodes": t.header.inodes,
        "lookups": lookups,
        "open files": t.header.opens[FILES],
        "open directories": t.header.opens[DIRECTORIES],
        "files open without OPEN": unopened[0],
        "directories open without OPENDIR": unopened[1],
        "owners of locks": (<Locks *>v.locks).table.count,
        "waits for locks": core.waiting(),
        "files that the kernel reads and writes": backed,
    }
