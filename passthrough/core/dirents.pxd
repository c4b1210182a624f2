"""Entries of listings, written into replies."""

from libc.stdint cimport uint32_t

from passthrough.core.abi cimport fuse_dirent, fuse_direntplus
from passthrough.core.layout cimport Inode, Tables
from passthrough.core.listing cimport Record, Stream
from passthrough.core.state cimport Thread


cdef enum:
    WORD = 8  # names are padded to a multiple


# One directory that is being listed, with its stream locked.
cdef struct Listing:
    Stream *stream
    const Inode *inode
    uint32_t kind  # listing.Kind
    bint hidden
    uint32_t room  # bytes that the reply may have
    uint32_t fresh_ms  # so long a name goes without the entry that a listing has given before


cdef uint32_t fresh_ms(const Thread *t) noexcept nogil
cdef void put_name(
    Thread *t, const Listing *listing, const Record *record, char *place, uint32_t size
) noexcept nogil
cdef int put_entry(
    Thread *t, const Listing *listing, const Record *record, char *place, uint32_t *size
) noexcept nogil


cdef inline uint32_t size_of(const Record *record, bint plus) noexcept nogil:
    """Return the bytes of an entry in a reply."""
    cdef size_t head = sizeof(fuse_direntplus) if plus else sizeof(fuse_dirent)
    return <uint32_t>((head + record.length + WORD - 1) // WORD * WORD)


cdef inline bint is_dot(const char *name) noexcept nogil:
    """Return whether a name is `.` or `..`."""
    return name[0] == b'.' and (name[1] == 0 or (name[1] == b'.' and name[2] == 0))
