"""Whether another thread takes over before a call that may wait for a disk: fsync(2), fallocate(2).

On a disk such a call takes milliseconds, and all other callers would wait for it. Without a disk,
or with nothing to write, it takes a microsecond, and to hand over takes ten times as long. So a
thread hands over unless the last calls of the volume were all fast. One that is slow after them
delays other callers as any system call that hangs does, until the pool of threads grows (crew.pyx).
"""

from libc.stdint cimport int32_t, int64_t

from passthrough.core.layout cimport RELAXED, load32, store32
from passthrough.core.libc cimport CLOCK_MONOTONIC, clock_gettime, timespec
from passthrough.core.state cimport Thread, about_to_block

cdef enum:
    SECOND_NS = 1000 * 1000 * 1000


cdef int64_t before_sync(Thread *t) noexcept nogil:
    """Hand over to another thread if the call may be slow; return the time, for `after_sync`."""
    if load32(&t.volume.fast_syncs, RELAXED) < FAST_SYNCS:
        about_to_block(t)
    return _now_ns()


cdef void after_sync(Thread *t, int64_t began_ns) noexcept nogil:
    """Count the call, which has ended."""
    cdef int32_t fast = load32(&t.volume.fast_syncs, RELAXED)
    if _now_ns() - began_ns > SLOW_NS:
        store32(&t.volume.fast_syncs, 0, RELAXED)
    elif fast < FAST_SYNCS:
        store32(&t.volume.fast_syncs, fast + 1, RELAXED)


cdef int64_t _now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * SECOND_NS + now.tv_nsec
