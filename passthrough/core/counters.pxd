"""Counters of requests, of their errors and data, and of open files; inodes and files held now.

The memory lies behind the control page, where passthrough/worker/counters.py reads it.
"""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.abi cimport FUSE_OPCODES
from passthrough.core.layout cimport Tables
from passthrough.core.libc cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef enum:
    ROWS = 16  # threads beyond that share rows
    BUCKETS = 31
    # Bucket 0 counts times below 1 << FIRST_BITS ns, each next one times below twice as much.
    FIRST_BITS = 8
    ERRORS = 288  # Linux has fewer; 0 counts all others


cdef struct Cell:
    uint64_t ns
    uint64_t buckets[BUCKETS]


# As long as a Cell, so that no cell lies across two pages.
cdef struct Sums:
    uint64_t opens  # regular files opened for callers
    uint64_t passing_opens  # of them, those that the kernel reads and writes by itself
    uint64_t bytes_read
    uint64_t bytes_written
    uint64_t spare[BUCKETS - 3]


# Four pages. An idle volume has touched one of a row, or two.
cdef struct Row:
    Sums sums
    Cell cells[FUSE_OPCODES]  # that of 0 counts all opcodes that are not known
    uint64_t errors[ERRORS]


# Numbers of the present. A thread stores them under the tables' mutex.
cdef struct Gauges:
    uint64_t inodes  # live ones, the root among them
    uint64_t files  # open ones with a descriptor
    uint64_t directories
    uint64_t passing_files  # inodes with a backing id of FUSE passthrough


cdef struct Counted:
    Row rows[ROWS]
    Gauges gauges


cdef int bucket_of(uint64_t ns) noexcept nogil
cdef void count(uint32_t row, uint32_t opcode, int error, uint64_t began) noexcept nogil
cdef void count_reply(uint32_t row, uint32_t opcode, const char *body, int length) noexcept nogil
cdef void show(const Tables *t) noexcept nogil


cdef inline uint64_t nanoseconds() noexcept nogil:
    """Return the time of CLOCK_MONOTONIC; no system call."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec
