"""Lookups that the kernel gives back, and what ends with the last one.

With the last lookup, an inode goes. If callers used it without an OPEN, the inode stays for the
open file or stream that serves them, which is then closed.
"""

from passthrough.native.directories cimport release_unopened_stream
from passthrough.native.files cimport release_unopened
from passthrough.native.inodes cimport close_gone
from passthrough.native.libc cimport S_IFDIR
from passthrough.native.tables cimport Gone, Inode, forget, inode_of


cdef void forget_lookups(Thread *t, uint64_t nodeid, uint64_t count) noexcept nogil:
    """Give lookups back, and close what the kernel does not know any more."""
    cdef Inode *inode
    cdef Gone gone
    forget(t.volume.tables, nodeid, count, &gone)
    close_gone(t, nodeid, &gone)
    if not gone.notes:
        return
    inode = inode_of(t.volume.tables, nodeid)  # which stays for that open file
    if inode == NULL:
        return
    if inode.type == S_IFDIR:
        release_unopened_stream(t, gone.notes)
    else:
        release_unopened(t, gone.notes)
