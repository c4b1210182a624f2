"""Inodes, open files, mounts and places: found, given out and taken back.

Lookup counts change in two functions, `grant` and `forget`. The caller of a function here owns what
the function hands back: descriptors and backing ids to close. No function makes a system call,
but `grant` gives the processor to `trim` if the hash is full.
"""

from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t

from passthrough.core.journal cimport Journal
from passthrough.core.layout cimport (
    ACQUIRE,
    BLOCK,
    BY_HANDLE,
    COUNTED_BIT,
    DIRECTORIES,
    FILES,
    HOST_BITS,
    LONG_HANDLE,
    MIXED_BIT,
    KNOWN,
    LISTED,
    MAX_HANDLE,
    NEEDS_HANDLE,
    NEW_BY_HANDLE,
    NONE,
    NO_PLACE,
    OPEN_TABLES,
    PLACE_LIMIT,
    PRIVILEGED,
    REFUSED,
    RELAXED,
    RELEASE,
    REPLACED,
    ROOT_INDEX,
    SHORT_HANDLE,
    SOURCE_PLACE,
    TAKEN,
    USER_SHIFT,
    USERS,
    UNDECIDED,
    FileHandle,
    Found,
    Gone,
    Granted,
    Header,
    Inode,
    Limits,
    Mount,
    Offsets,
    OpenFile,
    Place,
    Released,
    Tables,
    created,
    descriptor,
    exchange_notes,
    flags_of,
    handle_of,
    inode_of,
    load32,
    load64,
    mount_descriptor,
    may_open,
    milliseconds,
    mount_of,
    next_inode,
    next_open,
    open_get,
    set_twin,
    shown_beside,
    shown_in,
    some_by_handle,
    store16,
    store32,
    store64,
)
from passthrough.core.places cimport add_mount, enter_mount, leave_mount, place_on


cdef int grant(Tables *t, Journal *j, const Found *found, Granted *out) noexcept nogil
cdef void forget(
    Tables *t, Journal *j, uint64_t nodeid, uint64_t count, Gone *gone
) noexcept nogil
cdef void take_back(Tables *t, Journal *j, uint64_t nodeid, Gone *gone) noexcept nogil
cdef int find(Tables *t, uint32_t place, uint64_t ino, Granted *out) noexcept nogil
cdef bint pin(Tables *t, const Found *found) noexcept nogil

cdef int open_add(
    Tables *t, Journal *j, int table, uint64_t nodeid, const OpenFile *made, int32_t backing_id,
    uint64_t *fh, int32_t *in_force
) noexcept nogil
cdef int open_release(
    Tables *t, Journal *j, int table, uint64_t fh, Released *out
) noexcept nogil
cdef void set_privileged(Tables *t, uint64_t nodeid) noexcept nogil
cdef void set_listed(Tables *t, uint64_t nodeid) noexcept nogil


cdef inline int grant_handle(
    Tables *t, Journal *j, Found *found, const FileHandle *handle, Granted *out
) noexcept nogil:
    """Grant what `grant` has answered NEEDS_HANDLE to."""
    found.handle = handle
    return grant(t, j, found, out)
