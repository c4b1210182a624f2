"""The counters of requests for tests: buckets of times, and threads that count."""

from libc.stdint cimport uint64_t

from passthrough.core.counters cimport BUCKETS, Counted, bucket_of, count, nanoseconds

SIZE = sizeof(Counted)
LAST_BUCKET = BUCKETS - 1


def bucket(uint64_t ns):
    """Return the bucket of a time."""
    return bucket_of(ns)


def count_many(int row, int opcode, int error, int times):
    """Count as many requests, without the interpreter's lock."""
    cdef int _
    with nogil:
        for _ in range(times):
            count(row, opcode, error, nanoseconds())
