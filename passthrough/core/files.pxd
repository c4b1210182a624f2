"""Open files: added and found, brought to stable storage, closed."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.abi cimport fuse_in_header, fuse_open_out
from passthrough.core.layout cimport OpenFile
from passthrough.core.libc cimport struct_stat
from passthrough.core.state cimport Thread


# OpenFile.kind
cdef enum:
    DIRECT = 1  # the descriptor has O_DIRECT
    WRITABLE = 2  # the descriptor is open for writing
    # Takes none of the blocks that the host reserves for root: not opened by root to be written to.
    # Others may write by the backing id of a file that root has opened to be read.
    UNRESERVED = 4
    UNOPENED = 16  # for callers that have opened nothing (no_open); `Inode.notes` names it
    MAPPABLE = 8  # opened for reading and writing: a shared map of it can be stored into


cdef int add_file(
    Thread *t, uint64_t nodeid, int fd, int flags, const struct_stat *st, fuse_open_out *out
) noexcept nogil
cdef int file_of(Thread *t, uint64_t fh, uint64_t nodeid, OpenFile **file) noexcept nogil
cdef void release_unopened(Thread *t, uint32_t index) noexcept nogil  # Gone.notes
cdef bint open_for_writing(Thread *t, uint64_t nodeid) noexcept nogil

cdef int do_flush(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_fsync(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_release(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
