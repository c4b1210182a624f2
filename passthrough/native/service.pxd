"""What a thread of the pool does."""

from passthrough.native.crew cimport Crew


cdef int start_service(Crew *c) noexcept nogil
