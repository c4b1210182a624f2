"""Where values lie in the shared memory of a core, for tests that spoil them."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from passthrough.core.device cimport PAGE, PLACE_ROOM, REPLY_AT, REPLY_ROOM, Buffers, reply_present
from passthrough.core.face cimport Core
from passthrough.core.journal cimport Journal
from passthrough.core.layout cimport (
    DIRECTORIES, FILES, Header, Inode, Tables, handle_of, inode_of,
)
from passthrough.core.libc cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap
from passthrough.core.lock_records cimport Record, Records, kept_of
from passthrough.core.locks cimport Locks
from passthrough.core.loop cimport OUT_HEADER
from passthrough.core.stream_marks cimport Kept, KeptMark, OWN

cdef extern from "<sys/mman.h>" nogil:
    int MAP_ANONYMOUS
    int munmap(void *start, size_t size)

LONGEST_REPLY = REPLY_ROOM - REPLY_AT + OUT_HEADER
FIRST_OWN = OWN
JOURNAL = {
    "unique": <uint64_t>&(<Journal *>0).unique,
    "stage": <uint64_t>&(<Journal *>0).stage,
    "reply_length": <uint64_t>&(<Journal *>0).reply_length,
    "count": <uint64_t>&(<Journal *>0).count,
    "settled": <uint64_t>&(<Journal *>0).settled,
    "log": <uint64_t>&(<Journal *>0).log,
}
MARK = {
    "own": <uint64_t>&(<KeptMark *>0).own,
    "fh": <uint64_t>&(<KeptMark *>0).fh,
    "passed": <uint64_t>&(<KeptMark *>0).passed,
    "names": <uint64_t>&(<KeptMark *>0).names,
    "marks": <uint64_t>&(<Kept *>0).marks,
    "size": sizeof(KeptMark),
}


def values_of(Core core not None, uint64_t nodeid):
    """Return the memory, the place and the size of values, by name; `nodeid` is of an inode."""
    found = _header(core._volume.tables)
    found.update(_slots(core._volume.tables, nodeid))
    found["places of requests"] = core._crew.memory_fd, 0, 4
    found["present"] = core._crew.memory_fd, 4, 4
    found.update(_records(&(<Locks *>core._volume.locks).table.records))
    return found


cdef dict _header(Tables *t):
    cdef char *start = <char *>t.header
    cdef Header *h = t.header
    return {
        "version": (t.fd, <char *>&h.version - start, 4),
        "limit of inodes": (t.fd, <char *>&h.limits.inodes - start, 4),
        "limit of files": (t.fd, <char *>&h.limits.opens[FILES] - start, 4),
        "budget": (t.fd, <char *>&h.limits.budget - start, 8),
        "start of inodes": (t.fd, <char *>&h.offsets.inodes - start, 8),
        "entries of the hash": (t.fd, <char *>&h.offsets.hash_entries - start, 8),
        "end of inodes": (t.fd, <char *>&h.inode_end - start, 4),
        "end of files": (t.fd, <char *>&h.open_end[FILES] - start, 4),
        "end of directories": (t.fd, <char *>&h.open_end[DIRECTORIES] - start, 4),
        "places": (t.fd, <char *>&h.places - start, 4),
        "mounts": (t.fd, <char *>&h.mounts - start, 4),
    }


cdef dict _slots(Tables *t, uint64_t nodeid):
    cdef char *start = <char *>t.header
    cdef Inode *inode = inode_of(t, nodeid)
    cdef Inode *unused = &t.inodes[t.header.inode_end]
    cdef uint64_t index = <uint32_t>nodeid
    return {
        "root": (t.fd, <char *>&t.inodes[1].nodeid - start, 8),
        "descriptor of the root": (t.fd, <char *>&t.inodes[1].fd - start, 4),
        "place": (t.fd, <char *>&inode.place - start, 4),
        "notes": (t.fd, <char *>&inode.notes - start, 4),
        "flags": (t.fd, <char *>&inode.flags - start, 2),
        "handle": (t.fd, <char *>handle_of(t, inode) - start, 4),
        "long handle": (t.fd, t.handles + index * t.handle_size - start, 4),
        "mount": (t.fd, <char *>&t.places[0].mount - start, 4),
        "unused inode": (t.fd, <char *>&unused.nodeid - start, 8),
        "place of the unused inode": (t.fd, <char *>&unused.place - start, 4),
    }


cdef dict _records(Records *r):
    cdef char *start = <char *>r.shared
    cdef Record *record = r.at
    return {
        "end of records": (r.fd, <char *>&r.shared.end - start, 4),
        "used": (r.fd, <char *>&r.shared.used - start, 4),
        "opened": (r.fd, <char *>&record.opened_count - start, 4),
        "current": (r.fd, <char *>&record.current - start, 4),
        "described": (r.fd, <char *>&record.described - start, 4),
        "ranges": (r.fd, <char *>&kept_of(r, record).count - start, 4),
    }


def unused_nodeid(Core core not None):
    """Return the nodeid that the first unused slot of an inode would have."""
    return core._volume.tables.header.inode_end


def touch_reply(uint32_t length):
    """Have the pages of a reply, behind which there is no memory."""
    cdef Buffers b
    cdef char *start = <char *>mmap(
        NULL, PLACE_ROOM + PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0
    )
    if start == MAP_FAILED:
        raise MemoryError
    munmap(start + PLACE_ROOM, PAGE)
    memset(&b, 0, sizeof(b))
    b.request = start
    b.reply = start + PLACE_ROOM - REPLY_ROOM
    reply_present(&b, length)
    munmap(start, PLACE_ROOM)
