"""Shared memory as a dead worker has left it, checked before its successor uses it."""

from passthrough.core.crew cimport Crew
from passthrough.core.layout cimport Tables


cdef const char *find_damage(const Crew *c) noexcept nogil
cdef int clear_unused(Tables *t) noexcept nogil
