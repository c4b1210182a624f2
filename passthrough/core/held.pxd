"""The locks of bytes that one owner holds on one file: sorted ranges, none beside its like.

A range is found by bisection. To note one moves the memory of those behind it, which costs a
fraction of what the host spends on its own list of them.
"""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "<stdint.h>" nogil:
    const uint64_t LAST_BYTE "INT64_MAX"  # a lock up to this byte has no end, fcntl_locking(2)


cdef enum:
    FEW = 6  # ranges without memory of their own; SQLite holds three at most


# fcntl_locking(2), with the last byte in place of a length.
cdef struct Lock:
    uint64_t start
    uint64_t end  # included
    uint32_t kind  # F_RDLCK, F_WRLCK, F_UNLCK
    uint32_t pid  # of the holder; 0: unknown


cdef struct Held:
    Lock *ranges  # `few`, or memory of malloc(3)
    uint32_t count
    uint32_t writing  # of them for writing
    uint32_t room
    Lock few[FEW]


cdef void begin_held(Held *held) noexcept nogil
cdef void end_held(Held *held) noexcept nogil
cdef bint reserve(Held *held, uint32_t more) noexcept nogil
cdef bint fill_held(Held *held, const Lock *ranges, uint32_t count) noexcept nogil
cdef void note(Held *held, const Lock *lock) noexcept nogil
cdef bint holds(const Held *held, const Lock *lock) noexcept nogil
cdef bint hinders(const Held *held, const Lock *lock) noexcept nogil
cdef bint covers(const Held *held, const Lock *lock) noexcept nogil
cdef bint writes(const Held *held) noexcept nogil
