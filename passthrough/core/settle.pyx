"""Changes of the tables for requests without a reply, taken back after a death.

The successor serves such a request anew: it counts the lookups again, and adds the open file again.
So what the predecessor has counted and added goes first. The kernel has not been told of any of it.
FORGET is not taken back, but the entries that are done are not done again.

A request that is refused, because it has crashed two workers, may have been about to free an open
file or lookups (RELEASE, RELEASEDIR, FORGET). The kernel never sends it again. So they go here.

All this comes before `recover`, which frees inodes without lookups and opens. The successor may be
killed here, too. So each step is announced in the journal, as the tables announce theirs, and the
next successor goes on from there.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from passthrough.core.abi cimport (
    FUSE_BATCH_FORGET, FUSE_FORGET, FUSE_RELEASE, FUSE_RELEASEDIR, fuse_batch_forget_in,
    fuse_forget_in, fuse_forget_one, fuse_release_in,
)
from passthrough.core.files cimport UNOPENED
from passthrough.core.journal cimport (
    LOG, announce_forget, announce_return, end_return, is_refused, note_backing, note_settled,
)
from passthrough.core.layout cimport (
    DIRECTORIES, FILES, KIND_BITS, OPEN_TABLES, RELEASE, ROOT_INDEX, Inode, OpenFile, inode_of,
    next_open, open_get, store32, store64,
)
from passthrough.core.listing cimport SHARED


cdef bint _forgets(const fuse_in_header *h) noexcept nogil:
    return h.opcode == FUSE_FORGET or h.opcode == FUSE_BATCH_FORGET


cdef void settle(Tables *t, Journal *j, const fuse_in_header *h) noexcept nogil:
    """Find out whether the change that a request has announced last is made.

    For all requests, before anything is taken back. The thread was inside of the mutex, so no other
    one has changed that inode since.
    """
    cdef const Inode *inode
    if j.count == j.settled:
        return
    if _forgets(h):
        inode = inode_of(t, j.log[0])
        if inode == NULL or inode.lookups != j.before:
            note_settled(j)
            return
    elif 0 < j.count <= LOG:
        inode = inode_of(t, j.log[j.count - 1])
        if inode != NULL and inode.lookups != j.before:
            note_settled(j)
            return
    end_return(j)


cdef void undo(Tables *t, Journal *j, const fuse_in_header *h) noexcept nogil:
    """Take back what a request has opened, and the lookups that it has counted."""
    cdef OpenFile *file
    if j.opened_fh and j.opened_table < OPEN_TABLES:
        file = open_get(t, <int>j.opened_table, j.opened_fh)
        if file != NULL:
            _free(file)
        j.opened_fh = 0
    if is_refused(j):
        _free_for(t, j, h)
    if _forgets(h):
        return
    if j.count > LOG:  # no request is let come to this
        j.count = j.settled = LOG
    while j.count:
        _undo_lookup(t, j, j.log[j.count - 1])


cdef void _undo_lookup(Tables *t, Journal *j, uint64_t nodeid) noexcept nogil:
    """Take back the lookup in the last entry."""
    cdef Inode *inode = inode_of(t, nodeid)
    if inode != NULL and inode.lookups:
        announce_return(j, nodeid, inode.lookups - 1)
        store64(&inode.lookups, inode.lookups - 1, RELEASE)
    else:
        store32(<int32_t *>&j.settled, <int32_t>(j.count - 1), RELEASE)
    end_return(j)


cdef void _free_for(Tables *t, Journal *j, const fuse_in_header *h) noexcept nogil:
    """Free what a request that is refused would have freed."""
    cdef const char *arg = <const char *>(h + 1)
    cdef uint64_t room = max(h.len, <uint32_t>sizeof(fuse_in_header)) - sizeof(fuse_in_header)
    cdef const fuse_forget_one *rows
    cdef uint64_t at, count
    if h.opcode == FUSE_BATCH_FORGET and room >= sizeof(fuse_batch_forget_in):
        rows = <const fuse_forget_one *>(arg + sizeof(fuse_batch_forget_in))
        count = (<const fuse_batch_forget_in *>arg).count
        if count * sizeof(fuse_forget_one) <= room - sizeof(fuse_batch_forget_in):
            for at in range(j.settled, count):
                _forget(t, j, rows[at].nodeid, rows[at].nlookup)
    elif h.opcode == FUSE_FORGET and room >= sizeof(fuse_forget_in) and not j.settled:
        _forget(t, j, h.nodeid, (<const fuse_forget_in *>arg).nlookup)
    elif h.opcode == FUSE_RELEASE and room >= sizeof(fuse_release_in):
        _release(t, j, FILES, (<const fuse_release_in *>arg).fh)
    elif h.opcode == FUSE_RELEASEDIR and room >= sizeof(fuse_release_in):
        _release(t, j, DIRECTORIES, (<const fuse_release_in *>arg).fh)


cdef void _forget(Tables *t, Journal *j, uint64_t nodeid, uint64_t count) noexcept nogil:
    cdef Inode *inode = inode_of(t, nodeid) if nodeid != ROOT_INDEX else NULL
    announce_forget(j, nodeid, inode.lookups if inode != NULL else 0)
    if inode != NULL:
        store64(&inode.lookups, inode.lookups - min(count, inode.lookups), RELEASE)
    note_settled(j)


cdef void _release(Tables *t, Journal *j, int table, uint64_t fh) noexcept nogil:
    """Take a file out, unless it serves callers without an OPEN; the kernel knows no such fh."""
    cdef OpenFile *file = open_get(t, table, fh)
    cdef const Inode *inode
    if file == NULL:
        return
    inode = inode_of(t, file.nodeid)
    if inode != NULL and inode.notes == <uint32_t>fh:
        return
    if inode != NULL and inode.backing_id:
        note_backing(j, inode.backing_id)  # which is closed unless another open file has it
    _free(file)


cdef inline void _free(OpenFile *file) noexcept nogil:
    """Have a slot not be live any more; `recover` does the rest."""
    store64(&file.fh, ((file.fh >> 32) + 1) << 32, RELEASE)


cdef void drop_unopened(Tables *t) noexcept nogil:
    """Take out what was opened for callers without an OPEN, where no inode names it any more.

    The inode does not name it yet, or the kernel has forgotten the inode.
    """
    _drop(t, FILES, UNOPENED, UNOPENED)
    _drop(t, DIRECTORIES, KIND_BITS, SHARED)


cdef void _drop(Tables *t, int table, uint32_t mask, uint32_t kind) noexcept nogil:
    cdef uint32_t index = next_open(t, table, 0)
    cdef OpenFile *file
    cdef Inode *inode
    while index:
        file = &t.opens[table][index]
        if file.kind & mask == kind:
            inode = inode_of(t, file.nodeid)
            if inode == NULL or not inode.lookups or inode.notes != index:
                if inode != NULL and inode.notes == index:
                    inode.notes = 0
                _free(file)
        index = next_open(t, table, index)
