"""The entries of an open directory, from any offset that was given as one."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from passthrough.core.libc cimport pthread_mutex_t, ssize_t
from passthrough.core.offsets cimport Track
from passthrough.core.state cimport Thread, Volume


# OpenFile.kind of an open directory
cdef enum Kind:
    OPENED = 0
    SHARED = 1  # of a caller that has opened nothing (no_opendir), and of all others like it
    SQUASHED = 2  # opened by a squashed caller: names are looked up as `opener_of`


# Results: bytes or the new offset, or -errno.
ctypedef ssize_t (*Entries)(int fd, void *entries, size_t size) noexcept nogil
ctypedef int64_t (*Seek)(int fd, int64_t offset) noexcept nogil


# One entry; its name lies in the stream, and ends with a 0 byte.
cdef struct Record:
    uint64_t end  # the offset of the entry after it
    uint64_t number  # d_ino: the host's inode number
    const char *name
    uint32_t length
    uint32_t kind  # d_type: DT_*, 0 if the host's file system does not say


cdef struct Stream:
    pthread_mutex_t lock  # of all below
    uint64_t fh  # of which open directory this is the state; 0: of none
    int fd  # the open directory owns it; SHARED: the request in hand does, else -1
    Entries entries  # getdents64(2)
    Seek seek  # lseek(2)
    Track track
    # The window: entries from the host, with our own offsets in d_off.
    char *data
    uint32_t room
    uint32_t at_once  # bytes of the next getdents64(2)
    uint32_t first  # its first entry
    uint32_t next  # the entry that is read next
    uint32_t filled
    uint64_t first_start  # the offsets at which these two are found again
    uint64_t next_start
    uint64_t end  # the offset behind the window
    bint lost  # the descriptor is not behind the window
    bint renumbered  # lookups have shown other numbers than the listing


cdef int streams_open(Volume *v) noexcept nogil
cdef void streams_close(Volume *v) noexcept nogil
cdef Stream *stream_at(Volume *v, uint64_t fh) noexcept nogil
cdef int close_stream(Thread *t, uint64_t fh) noexcept nogil
cdef void release_unopened_stream(Thread *t, uint32_t index) noexcept nogil  # Gone.notes
cdef void lock_stream(Thread *t, Stream *s) noexcept nogil
cdef void unlock_stream(Stream *s) noexcept nogil

cdef void stream_init(Stream *s) noexcept nogil
cdef void stream_reset(Stream *s, uint64_t fh, int fd, bint shared) noexcept nogil
cdef int stream_seek(Stream *s, uint64_t offset) noexcept nogil
cdef int stream_peek(Stream *s, Record *record) noexcept nogil
cdef void stream_take(Stream *s) noexcept nogil
cdef void stream_expect(Stream *s, uint32_t room, bint plus) noexcept nogil
cdef void stream_rest(Stream *s, uint32_t room) noexcept nogil
cdef void stream_part(Stream *s) noexcept nogil
