"""A process goes on where another one was killed."""

from libc.stdint cimport uint64_t

from passthrough.core.crew cimport Crew


# A descriptor that nothing accounts for, and the file that it leads to.
cdef struct LostOne:
    int fd
    uint64_t device
    uint64_t ino


# To be closed once threads serve.
cdef struct Lost:
    LostOne *at
    int count


cdef int take_over(Crew *c, const int *kept, int kept_count, Lost *lost) noexcept nogil
cdef void close_lost(Lost *lost) noexcept nogil
