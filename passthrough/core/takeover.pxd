"""A process goes on where another one was killed."""

from libc.stdint cimport uint64_t

from passthrough.core.crew cimport Crew


# A descriptor that nothing accounts for, and the file that it leads to. The last one of an array is
# followed by one with -1.
cdef struct Lost:
    int fd
    uint64_t device
    uint64_t ino


cdef int take_over(Crew *c, const int *kept, int kept_count, Lost **lost) noexcept nogil
cdef void close_lost(Lost **lost) noexcept nogil
