"""Counts what the tables of a volume hold, from another process than the worker."""

from libc.stdint cimport uint32_t

from passthrough.core cimport libc
from passthrough.core.layout cimport DIRECTORIES, FILES, OPEN_TABLES, Header, Inode, OpenFile


def held(int fd):
    """Return the number of each thing in the tables in the memfd `fd`, by name.

    The slots are counted, and the header's own counts are compared with them. The worker must have
    no request in hand meanwhile.
    """
    cdef libc.struct_stat st
    cdef void *start
    if libc.fstat(fd, &st) < 0:
        raise OSError(libc.errno, "fstat(2)")
    start = libc.mmap(NULL, st.st_size, libc.PROT_READ, libc.MAP_SHARED, fd, 0)
    if start == libc.MAP_FAILED:
        raise OSError(libc.errno, "mmap(2)")
    try:
        return _count(<const Header *>start)
    finally:
        libc.munmap(start, <size_t>st.st_size)


cdef _count(const Header *h):
    cdef const char *start = <const char *>h
    cdef const Inode *inodes = <const Inode *>(start + h.offsets.inodes)
    cdef const OpenFile *opened
    cdef uint32_t index
    cdef int table
    live = lookups = backed = noted = held_open = 0
    opens = [0, 0]
    for index in range(1, h.inode_end):
        if <uint32_t>inodes[index].nodeid != index:
            continue
        live += 1
        lookups += inodes[index].lookups
        held_open += inodes[index].opens
        backed += inodes[index].opens > 0 and inodes[index].backing_id > 0
        noted += inodes[index].notes != 0
    for table in range(OPEN_TABLES):
        opened = <const OpenFile *>(start + h.offsets.opens[table])
        for index in range(1, h.open_end[table]):
            opens[table] += <uint32_t>opened[index].fh == index
    return {
        "inodes": live,
        "lookups": lookups,
        "open files": opens[FILES],
        "open directories": opens[DIRECTORIES],
        "opens of inodes": held_open,
        "open without OPEN": noted,
        "files that the kernel reads and writes": backed,
        "inodes that the header counts wrong": abs(<int>(live - h.inodes)),
    }
