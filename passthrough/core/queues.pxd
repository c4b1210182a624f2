"""The threads that serve entries of io_uring."""

from passthrough.core.crew cimport Crew


cdef int start_queues(Crew *device, const int *processors, int count) noexcept nogil
