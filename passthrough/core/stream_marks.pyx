"""Directory streams as the next worker finds them, in memory that workers of a volume share.

The next worker has no state of a stream: it goes to the offset that the kernel names. So offsets of
our own must be known to it, and the ids of the squashed caller that has opened a stream, by which
names are looked up. The last 4,096 marks of the volume are kept, unless the names that are passed
there take more than 480 bytes. A host that gives offsets beyond 2^63 has no marks: on such a host,
a listing that the death of a worker interrupts fails with EINVAL.

A worker may be killed between any two instructions. A mark is found by its number, which is stored
last. The kernel has not been told of an fh whose opener is not recorded yet.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from passthrough.core.layout cimport RELAXED, RELEASE, add32, store64
from passthrough.core.libc cimport close, munmap
from passthrough.core.shared cimport map_memory


cdef inline uint64_t _size(uint32_t streams) noexcept nogil:
    return sizeof(Kept) + <uint64_t>streams * sizeof(Opener)


cdef Kept *make_kept(uint32_t streams, int *fd, int *error) noexcept nogil:
    """Return the memory `fd` for so many streams, new if that is -1; NULL: `error` has the errno.
    """
    return <Kept *>map_memory(fd, "passfs-streams", _size(streams), error)


cdef void end_kept(Kept *kept, uint32_t streams, int fd) noexcept nogil:
    """Give the memory back."""
    munmap(kept, _size(streams))
    close(fd)


# Openers


cdef inline Opener *_opener(const Kept *kept, uint64_t fh) noexcept nogil:
    return <Opener *>(kept + 1) + <uint32_t>fh


cdef void keep_opener(Kept *kept, uint64_t fh, const Ids *ids) noexcept nogil:
    """Record the ids by which the names of a stream are looked up."""
    cdef Opener *opener = _opener(kept, fh)
    opener.ids = ids[0]
    store64(&opener.fh, fh, RELEASE)


cdef const Ids *opener_of(const Kept *kept, uint64_t fh) noexcept nogil:
    """Return the ids by which the names of a stream are looked up, or NULL."""
    cdef const Opener *opener = _opener(kept, fh)
    return &opener.ids if opener.fh == fh else NULL


# Marks


cdef uint64_t new_own(Kept *kept) noexcept nogil:
    """Return an offset that stands for no place, or for a place of 2^32 marks ago."""
    cdef uint64_t own = END
    while own == END:
        own = OWN + <uint32_t>add32(&kept.made, 1, RELAXED)
    return own


cdef void keep_mark(
    Kept *kept, uint64_t fh, uint64_t own, int64_t offset, const char *names, uint32_t passed
) noexcept nogil:
    """Record the place that an offset of `new_own` stands for, unless its names are too many."""
    cdef KeptMark *mark = &kept.marks[own % MOST_KEPT_MARKS]
    if passed > NAMES_ROOM:
        return
    store64(&mark.own, 0, RELEASE)
    mark.fh = fh
    mark.offset = offset
    mark.passed = passed
    if passed:
        memcpy(mark.names, names, passed)
    store64(&mark.own, own, RELEASE)


cdef const KeptMark *kept_mark(const Kept *kept, uint64_t fh, uint64_t own) noexcept nogil:
    """Return what an offset of a stream stands for, or NULL; an attacker may have made the mark."""
    cdef const KeptMark *mark = &kept.marks[own % MOST_KEPT_MARKS]
    if mark.own != own or mark.fh != fh or mark.passed > NAMES_ROOM:
        return NULL
    return mark if not mark.passed or mark.names[mark.passed - 1] == 0 else NULL
