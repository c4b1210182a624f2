"""The locks of bytes that one owner holds on one file, as the host merges and splits them."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from passthrough.core.libc cimport F_UNLCK, F_WRLCK


cdef void begin_held(Held *held) noexcept nogil:
    """Hold nothing."""
    held.ranges = held.few
    held.count = held.writing = 0
    held.room = FEW


cdef void end_held(Held *held) noexcept nogil:
    """Give the memory back."""
    if held.ranges != held.few:
        free(held.ranges)
    begin_held(held)


cdef bint reserve(Held *held, uint32_t more) noexcept nogil:
    """Make room for `more` ranges: two for each `note` that is to come; false without memory."""
    cdef uint32_t room = held.count + more
    cdef Lock *ranges
    if room <= held.room:
        return True
    room += room // 2
    if held.ranges == held.few:
        ranges = <Lock *>malloc(room * sizeof(Lock))
        if ranges != NULL:
            memcpy(ranges, held.few, held.count * sizeof(Lock))
    else:
        ranges = <Lock *>realloc(held.ranges, room * sizeof(Lock))
    if ranges == NULL:
        return False
    held.ranges = ranges
    held.room = room
    return True


cdef bint fill_held(Held *held, const Lock *ranges, uint32_t count) noexcept nogil:
    """Hold ranges that are sorted, and no others; false without memory."""
    held.count = held.writing = 0
    if not reserve(held, count):
        return False
    memcpy(held.ranges, ranges, count * sizeof(Lock))
    held.count = count
    held.writing = _count_writing(ranges, count)
    return True


cdef inline uint32_t _first(const Held *held, uint64_t byte) noexcept nogil:
    """Return the index of the first range that ends at a byte or behind it."""
    cdef uint32_t low = 0, high = held.count, middle
    while low < high:
        middle = (low + high) >> 1
        if held.ranges[middle].end < byte:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline uint32_t _count_writing(const Lock *ranges, uint32_t count) noexcept nogil:
    cdef uint32_t at, found = 0
    for at in range(count):
        found += ranges[at].kind == <uint32_t>F_WRLCK
    return found


cdef void note(Held *held, const Lock *lock) noexcept nogil:
    """Note that `lock` has taken the place of all that was held of its bytes.

    There must be room for two more ranges.
    """
    cdef Lock pieces[3]
    cdef Lock *ranges = held.ranges
    cdef bint taken = lock.kind != <uint32_t>F_UNLCK
    # With the neighbours, which may be of the same kind.
    cdef uint32_t first = _first(held, lock.start - (lock.start > 0))
    cdef uint32_t end = first, count = 0
    while end < held.count and ranges[end].start <= lock.end + 1:
        end += 1
    if end > first and ranges[first].start < lock.start:
        pieces[0] = ranges[first]
        pieces[0].end = min(pieces[0].end, lock.start - 1)
        count = 1
    if taken:
        if count and pieces[0].kind == lock.kind:
            pieces[0].end = lock.end
        else:
            pieces[count] = lock[0]
            count += 1
    if end > first and ranges[end - 1].end > lock.end:
        if taken and ranges[end - 1].kind == lock.kind:
            pieces[count - 1].end = ranges[end - 1].end
        else:
            pieces[count] = ranges[end - 1]
            pieces[count].start = max(pieces[count].start, lock.end + 1)
            count += 1
    held.writing -= _count_writing(&ranges[first], end - first)
    held.writing += _count_writing(pieces, count)
    memmove(&ranges[first + count], &ranges[end], (held.count - end) * sizeof(Lock))
    memcpy(&ranges[first], pieces, count * sizeof(Lock))
    held.count = held.count - (end - first) + count


cdef bint holds(const Held *held, const Lock *lock) noexcept nogil:
    """Return whether `lock`, or a part of it, is held."""
    cdef uint32_t at
    for at in range(_first(held, lock.start), held.count):
        if held.ranges[at].start > lock.end:
            return False
        if held.ranges[at].kind == lock.kind:
            return True
    return False


cdef bint hinders(const Held *held, const Lock *lock) noexcept nogil:
    """Return whether a range held is in the way of another owner's `lock`."""
    cdef uint32_t at
    for at in range(_first(held, lock.start), held.count):
        if held.ranges[at].start > lock.end:
            return False
        if held.ranges[at].kind == <uint32_t>F_WRLCK or lock.kind == <uint32_t>F_WRLCK:
            return True
    return False


cdef bint covers(const Held *held, const Lock *lock) noexcept nogil:
    """Return whether all bytes of `lock` are held, of either kind."""
    cdef uint64_t start = lock.start
    cdef uint32_t at
    for at in range(_first(held, start), held.count):
        if held.ranges[at].start > start:
            return False
        if held.ranges[at].end >= lock.end:
            return True
        if held.ranges[at].end >= start:
            start = held.ranges[at].end + 1
    return False


cdef bint writes(const Held *held) noexcept nogil:
    """Return whether a range is held for writing."""
    return held.writing != 0
