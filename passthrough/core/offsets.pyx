"""Offsets of directory streams that each stand for one place.

An offset is the host's (d_off, getdents(2)) if the host's offset names one place. The end of ext4
does, too: its offset is the highest that there is. The host's offset stays good while other
processes create and delete, after the stream has gone elsewhere, and in another process. Some file
systems give offsets beyond 2^63, to which lseek(2) does not lead (NFS hands on those of its
server). Some give several entries the same offset (entries of one hash). Such a place gets an
offset of our own: a reply that ends there would otherwise lose or repeat an entry.

Of several entries with one offset, lseek(2) leads to the first. So an offset of our own stands for
the host's offset and for the names that are passed there. Names, not their number: a removed entry
would make a number skip one entry too many.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memmove, strlen

from passthrough.core.libc cimport EINVAL, ENOMEM
from passthrough.core.stream_marks cimport KeptMark, keep_mark, kept_mark, new_own

cdef enum:
    MOST_MARKS = 1 << 16  # of one stream; then the older half is forgotten
    RECENT = 64  # among so many, a place that comes again is found
    MOST_NAMES = 1 << 28  # bytes of one run


cdef void track_reset(Track *track, uint64_t fh, bint shared) noexcept nogil:
    """Begin anew, at the start of a directory; frees what the track has kept."""
    forget_marks(track)
    free(track.marks)
    track.marks = NULL
    track.room = 0
    track.fh = fh
    track.shared = shared
    track.next_own = OWN - 1
    begin_at(track, 0, NULL)


cdef void forget_marks(Track *track) noexcept nogil:
    _forget(track, track.count)


cdef const Mark *mark_of(const Track *track, uint64_t own) noexcept nogil:
    """Return what an offset of our own stands for, or NULL."""
    cdef uint32_t low = 0
    cdef uint32_t high = track.count
    cdef uint32_t middle
    while low < high:
        middle = (low + high) // 2
        if track.marks[middle].own < own:
            low = middle + 1
        else:
            high = middle
    if low < track.count and track.marks[low].own == own:
        return &track.marks[low]
    return NULL


cdef int begin_at(Track *track, int64_t offset, const Mark *mark) noexcept nogil:
    """Be where lseek(2) leads to with an offset, that of `mark` if there is one; 0 or -ENOMEM."""
    cdef Run *run = NULL
    track.skipped = 0
    if mark != NULL and mark.passed:
        if mark.passed == mark.run.used:
            run = mark.run
            run.users += 1
        else:
            run = _run_of(mark.run.names, mark.passed)
            if run == NULL:
                return -ENOMEM
        track.skipped = mark.passed
    _release(track.run)
    track.run = run
    track.offset = offset
    return 0


cdef int begin_at_kept(Track *track, uint64_t own, int64_t *offset) noexcept nogil:
    """Be where lseek(2) leads to with `offset`, that of a mark of the worker before; 0 or -errno.

    -EINVAL: nothing is known of such a mark.
    """
    cdef const KeptMark *kept = NULL
    cdef Mark mark
    cdef int result
    if track.kept != NULL:
        kept = kept_mark(track.kept, track.fh, own)
    if kept == NULL:
        return -EINVAL
    offset[0] = mark.offset = kept.offset
    mark.passed = kept.passed
    mark.run = _run_of(kept.names, kept.passed) if kept.passed else NULL
    if kept.passed and mark.run == NULL:
        return -ENOMEM
    result = begin_at(track, mark.offset, &mark)
    _release(mark.run)
    return result


cdef bint is_passed(const Track *track, const char *name) noexcept nogil:
    """Return whether the place is behind a name that the host gives once more."""
    cdef size_t size = strlen(name) + 1
    cdef size_t at = 0
    cdef size_t length
    while at < track.skipped:
        length = strlen(track.run.names + at) + 1
        if length == size and memcmp(track.run.names + at, name, size) == 0:
            return True
        at += length
    return False


cdef int offset_behind(
    Track *track, int64_t offset, const char *name, uint64_t *end
) noexcept nogil:
    """Go behind `name`, where the host has `offset`; `end` becomes what stands for that place.

    Return 0 or -ENOMEM.
    """
    if offset != track.offset:
        _release(track.run)
        track.run = NULL
        track.offset = offset
        track.skipped = 0
        if 0 < offset < <int64_t>OWN or offset == <int64_t>END:
            end[0] = <uint64_t>offset
            return 0
    elif offset > 0 and _add_name(track, name):
        return -ENOMEM
    if offset > 0:
        return _mark(track, end)
    end[0] = _next_own(track)  # without a mark: lseek(2) does not lead there
    return 0


cdef int _mark(Track *track, uint64_t *end) noexcept nogil:
    """Give the place an offset of our own; 0 or -ENOMEM."""
    cdef Mark *mark = _recent(track)
    if mark != NULL:
        end[0] = mark.own
        return 0
    if track.count == MOST_MARKS:
        _forget(track, MOST_MARKS // 2)
    if track.count == track.room:
        mark = <Mark *>realloc(track.marks, (track.room * 2 + 4) * sizeof(Mark))
        if mark == NULL:
            return -ENOMEM
        track.marks = mark
        track.room = track.room * 2 + 4
    end[0] = _next_own(track)
    mark = &track.marks[track.count]
    track.count += 1
    mark.own = end[0]
    mark.offset = track.offset
    mark.run = track.run
    mark.passed = 0
    if track.run != NULL:
        mark.passed = track.run.used
        track.run.users += 1
    if track.kept != NULL:
        _keep(track, mark)
    return 0


cdef void _keep(Track *track, const Mark *mark) noexcept nogil:
    cdef const char *names = mark.run.names if mark.run != NULL else NULL
    keep_mark(track.kept, track.fh, mark.own, mark.offset, names, mark.passed)


cdef Mark *_recent(const Track *track) noexcept nogil:
    """Return the mark of this very place, if a shared stream has been there a short while ago.

    Its marks outlive a return to the start. Each listing would add another mark for ext4's end.
    """
    cdef uint32_t passed = track.run.used if track.run != NULL else 0
    cdef uint32_t at = track.count
    cdef uint32_t least = at - RECENT if at > RECENT else 0
    cdef Mark *mark
    while track.shared and at > least:
        at -= 1
        mark = &track.marks[at]
        if mark.offset == track.offset and mark.passed == passed:
            if not passed or memcmp(mark.run.names, track.run.names, passed) == 0:
                return mark
    return NULL


cdef uint64_t _next_own(Track *track) noexcept nogil:
    cdef uint64_t before = track.next_own
    if track.kept != NULL:
        track.next_own = new_own(track.kept)
    else:
        track.next_own = OWN if before >= END - 1 else before + 1
    if track.next_own < before:  # after 2^32 of them
        forget_marks(track)
    return track.next_own


cdef void _forget(Track *track, uint32_t count) noexcept nogil:
    """Forget the oldest marks."""
    cdef uint32_t index
    for index in range(count):
        _release(track.marks[index].run)
    track.count -= count
    if track.count:
        memmove(track.marks, track.marks + count, track.count * sizeof(Mark))


cdef int _add_name(Track *track, const char *name) noexcept nogil:
    """Have one more name in the run that the stream is in; 0 or -ENOMEM."""
    cdef uint32_t size = <uint32_t>strlen(name) + 1
    if track.run != NULL:
        return _extend(track.run, name, size)
    track.run = _run_of(name, size)
    return 0 if track.run != NULL else -ENOMEM


cdef Run *_run_of(const char *names, uint32_t used) noexcept nogil:
    """Return a run with a copy of names, for one user; NULL: there is no memory."""
    cdef Run *run = <Run *>calloc(1, sizeof(Run))
    if run == NULL:
        return NULL
    run.users = 1
    if _extend(run, names, used):
        free(run)
        return NULL
    return run


cdef int _extend(Run *run, const char *names, uint32_t size) noexcept nogil:
    cdef uint32_t used = run.used + size
    cdef char *grown
    if used > MOST_NAMES:
        return -ENOMEM
    if run.room < used:
        grown = <char *>realloc(run.names, used * 2)
        if grown == NULL:
            return -ENOMEM
        run.names = grown
        run.room = used * 2
    memcpy(run.names + run.used, names, size)
    run.used = used
    return 0


cdef void _release(Run *run) noexcept nogil:
    if run == NULL:
        return
    run.users -= 1
    if not run.users:
        free(run.names)
        free(run)
