"""Calls that may wait for a disk for tests, in a volume without a session."""

from libc.stdint cimport int64_t
from libc.string cimport memset

from passthrough.core.state cimport Thread, Volume
from passthrough.core.syncs cimport FAST_SYNCS, SLOW_NS, after_sync, before_sync

FAST = FAST_SYNCS


cdef void _block(Thread *t) noexcept nogil:
    (<int *>t.of_crew)[0] += 1


cdef class Probe:
    """A thread of a volume, which counts how often it hands over."""

    cdef Volume volume
    cdef Thread thread
    cdef int handed_over

    def __cinit__(self):
        memset(&self.volume, 0, sizeof(Volume))
        memset(&self.thread, 0, sizeof(Thread))
        self.volume.block_hook = _block
        self.thread.volume = &self.volume
        self.thread.of_crew = &self.handed_over

    def sync(self, bint slow=False):
        """Make a call; return whether the thread hands over before it."""
        cdef int before = self.handed_over
        cdef int64_t began_ns = before_sync(&self.thread)
        after_sync(&self.thread, began_ns - slow * 2 * SLOW_NS)
        return self.handed_over > before
