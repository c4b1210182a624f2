"""The work of the main thread while a volume is served."""

from passthrough.core.crew cimport Crew


# Results of `watch`.
cdef enum:
    SIGNALLED = 1
    KEEPER_ENDED = 2
    CONNECTION_ENDED = 3
    INTERRUPTED = 4


cdef int watch(Crew *c, int wakeup_fd, int keeper_fd) noexcept nogil
