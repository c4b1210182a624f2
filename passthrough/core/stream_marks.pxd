"""Directory streams as the next worker finds them, in memory that workers of a volume share."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from passthrough.core.state cimport Ids


cdef enum:
    MOST_KEPT_MARKS = 1 << 12
    NAMES_ROOM = 480


cdef extern from "<stdint.h>" nogil:
    # Offsets from here up are ours, but for the last one: ext4 gives that to the end. ext4 has no
    # others there, because it lets no hash be the highest.
    const uint64_t OWN "((UINT64_C(1) << 63) - (UINT64_C(1) << 32))"
    const uint64_t END "((UINT64_C(1) << 63) - 1)"


# A place that an offset of our own stands for, as Mark of offsets.pxd.
cdef struct KeptMark:
    uint64_t own  # 0: none, or one that is being written
    uint64_t fh
    int64_t offset
    uint32_t passed
    uint32_t spare
    char names[NAMES_ROOM]


# The squashed caller that has opened a stream.
cdef struct Opener:
    uint64_t fh
    Ids ids


# The openers, by the index of the stream, follow.
cdef struct Kept:
    int32_t made  # marks so far, modulo 2**32
    uint32_t spare
    KeptMark marks[MOST_KEPT_MARKS]


cdef Kept *make_kept(uint32_t streams, int *fd, int *error) noexcept nogil
cdef void end_kept(Kept *kept, uint32_t streams, int fd) noexcept nogil
cdef void keep_opener(Kept *kept, uint64_t fh, const Ids *ids) noexcept nogil
cdef const Ids *opener_of(const Kept *kept, uint64_t fh) noexcept nogil
cdef uint64_t new_own(Kept *kept) noexcept nogil
cdef void keep_mark(
    Kept *kept, uint64_t fh, uint64_t own, int64_t offset, const char *names, uint32_t passed
) noexcept nogil
cdef const KeptMark *kept_mark(const Kept *kept, uint64_t fh, uint64_t own) noexcept nogil
