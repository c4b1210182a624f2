"""The work of a thread of the pool of /dev/fuse."""

from passthrough.core.crew cimport Crew, Slot


cdef int start_service(Crew *c, bint alone) noexcept nogil
cdef bint another_serves(Crew *c, const Slot *slot) noexcept nogil
cdef void resume_sampling(Crew *c) noexcept nogil
