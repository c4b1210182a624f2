"""Counters of requests: by operation, with their times, and of errors by errno.

The memory lies behind the control page, where passthrough/worker/counters.py reads it.
"""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.abi cimport FUSE_OPCODES
from passthrough.core.libc cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef enum:
    ROWS = 16  # threads beyond that share rows
    BUCKETS = 31
    # Bucket 0 counts times below 1 << FIRST_BITS ns, each next one times below twice as much.
    FIRST_BITS = 8
    ERRORS = 320  # Linux has fewer; 0 counts all others


cdef struct Cell:
    uint64_t ns
    uint64_t buckets[BUCKETS]


# Four pages. An idle volume has touched one of a row, or two.
cdef struct Row:
    Cell cells[FUSE_OPCODES]  # that of 0 counts all opcodes that are not known
    uint64_t errors[ERRORS]


cdef int bucket_of(uint64_t ns) noexcept nogil
cdef void count(uint32_t row, uint32_t opcode, int error, uint64_t began) noexcept nogil


cdef inline uint64_t nanoseconds() noexcept nogil:
    """Return the time of CLOCK_MONOTONIC; no system call."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec
