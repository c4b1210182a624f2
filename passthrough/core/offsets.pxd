"""Offsets of directory streams that each stand for one place."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from passthrough.core.stream_marks cimport END, OWN, Kept


# Names behind which the host has one and the same offset, each with a 0 byte, in their order. A run
# only grows, so a number of bytes is a place among its names for good.
cdef struct Run:
    uint32_t users
    uint32_t used
    uint32_t room
    char *names


# A place that an offset of our own stands for.
cdef struct Mark:
    uint64_t own
    int64_t offset  # of the host
    Run *run  # NULL: passed is 0
    uint32_t passed  # bytes of the names that the place is behind


# The position of a stream, and the marks that it has given.
cdef struct Track:
    int64_t offset  # of the host
    Run *run  # NULL: no names
    uint32_t skipped  # bytes of the run's names that the host gives once more
    Kept *kept  # records marks; NULL: nothing does
    uint64_t fh
    bint shared  # one caller may return to the start while another goes on
    Mark *marks  # in the order of `own`
    uint32_t count
    uint32_t room
    uint64_t next_own


cdef void track_reset(Track *track, uint64_t fh, bint shared) noexcept nogil
cdef void forget_marks(Track *track) noexcept nogil
cdef const Mark *mark_of(const Track *track, uint64_t own) noexcept nogil
cdef int begin_at_kept(Track *track, uint64_t own, int64_t *offset) noexcept nogil
cdef int begin_at(Track *track, int64_t offset, const Mark *mark) noexcept nogil
cdef bint is_passed(const Track *track, const char *name) noexcept nogil
cdef int offset_behind(
    Track *track, int64_t offset, const char *name, uint64_t *end
) noexcept nogil
