"""Lookups that the kernel gives back, and what ends with the last one."""

from libc.stdint cimport uint64_t

from passthrough.core.state cimport Thread


cdef void forget_lookups(Thread *t, uint64_t nodeid, uint64_t count) noexcept nogil
cdef void take_lookup_back(Thread *t, uint64_t nodeid) noexcept nogil
