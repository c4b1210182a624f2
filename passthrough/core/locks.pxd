"""Locks of fcntl(2) and flock(2) on the host's files, and waiting for them."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.layout cimport OpenFile
from passthrough.core.lock_records cimport Record
from passthrough.core.lock_table cimport LockTable
from passthrough.core.state cimport Thread, Volume
from passthrough.core.waits cimport Waits


# Behind Volume.locks.
cdef struct Locks:
    LockTable table
    Waits waits


cdef int locks_open(Volume *v) noexcept nogil
cdef void locks_close(Volume *v) noexcept nogil
cdef int locks_recover(Volume *v) noexcept nogil
cdef const Record *next_record(const Volume *v, uint32_t *index) noexcept nogil
cdef void owner_closed(Thread *t, uint64_t nodeid, uint64_t owner) noexcept nogil
cdef void file_released(Thread *t, const OpenFile *file, bint unlock) noexcept nogil
cdef uint32_t waiting(const Volume *v) noexcept nogil

cdef int do_getlk(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_setlk(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_setlkw(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_interrupt(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil
