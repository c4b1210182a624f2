"""The work of a thread of the pool of /dev/fuse."""

from passthrough.native.crew cimport Crew, Slot


cdef int start_service(Crew *c) noexcept nogil
cdef bint another_serves(Crew *c, const Slot *slot) noexcept nogil
cdef void resume_sampling(Crew *c) noexcept nogil
