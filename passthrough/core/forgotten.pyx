"""Lookups that the kernel gives back, and what ends with the last one.

With the last lookup, an inode goes. If callers used it without an OPEN, the inode stays for the
open file or stream that serves them, which is then closed.
"""

from passthrough.core.files cimport release_unopened
from passthrough.core.inodes cimport close_gone
from passthrough.core.libc cimport S_IFDIR
from passthrough.core.listing cimport release_unopened_stream
from passthrough.core.tables cimport Gone, Inode, forget, inode_of, take_back


cdef void forget_lookups(Thread *t, uint64_t nodeid, uint64_t count) noexcept nogil:
    """Give lookups back for the kernel, and close what it does not know any more."""
    cdef Gone gone
    forget(t.volume.tables, t.journal, nodeid, count, &gone)
    _close(t, nodeid, &gone)


cdef void take_lookup_back(Thread *t, uint64_t nodeid) noexcept nogil:
    """Give the lookup back that the request in hand has counted last: the reply lacks it."""
    cdef Gone gone
    take_back(t.volume.tables, t.journal, nodeid, &gone)
    _close(t, nodeid, &gone)


cdef void _close(Thread *t, uint64_t nodeid, const Gone *gone) noexcept nogil:
    cdef Inode *inode
    close_gone(t, nodeid, gone)
    if not gone.notes:
        return
    inode = inode_of(t.volume.tables, nodeid)  # which stays for that open file
    if inode == NULL:
        return
    if inode.type == S_IFDIR:
        release_unopened_stream(t, gone.notes)
    else:
        release_unopened(t, gone.notes)
