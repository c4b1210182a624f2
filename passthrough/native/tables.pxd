"""Inodes, open files, mounts and places: found, given out and taken back.

Lookup counts change in two functions, `grant` and `forget`. The caller of a function here owns what
the function hands back: descriptors and backing ids to close. No function makes a system call.
"""

from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t

from passthrough.native.layout cimport (
    ACQUIRE,
    BLOCK,
    BY_HANDLE,
    COUNTED_BIT,
    DIRECTORIES,
    FILES,
    HOST_BITS,
    KNOWN,
    MAX_HANDLE,
    NEEDS_HANDLE,
    NEW_BY_HANDLE,
    NONE,
    NO_PLACE,
    OPEN_TABLES,
    PRIVILEGED,
    RELAXED,
    RELEASE,
    REPLACED,
    ROOT_INDEX,
    SOURCE_PLACE,
    TAKEN,
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
    mount_of,
    next_inode,
    next_open,
    open_get,
    set_twin,
    shown_beside,
    some_by_handle,
    store16,
    store32,
    store64,
)
from passthrough.native.places cimport add_mount, enter_mount, leave_mount, place_on


cdef int grant(Tables *t, const Found *found, Granted *out) noexcept nogil
cdef void forget(Tables *t, uint64_t nodeid, uint64_t count, Gone *gone) noexcept nogil
cdef int find(Tables *t, uint32_t place, uint64_t ino, Granted *out) noexcept nogil
cdef bint pin(Tables *t, const Found *found) noexcept nogil

cdef int open_add(
    Tables *t, int table, uint64_t nodeid, const OpenFile *made, int32_t backing_id,
    uint64_t *fh, int32_t *in_force
) noexcept nogil
cdef int open_release(Tables *t, int table, uint64_t fh, Released *out) noexcept nogil
cdef void set_privileged(Tables *t, uint64_t nodeid) noexcept nogil


cdef inline int grant_handle(
    Tables *t, Found *found, const FileHandle *handle, Granted *out
) noexcept nogil:
    """Grant what `grant` has answered NEEDS_HANDLE to."""
    found.handle = handle
    return grant(t, found, out)
