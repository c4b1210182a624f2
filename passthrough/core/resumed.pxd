"""Requests that a predecessor had in hand, served by its successor."""

from libc.stdint cimport uint32_t

from passthrough.core.device cimport Buffers
from passthrough.core.state cimport Thread


cdef uint32_t serve_again(Thread *t, Buffers *b) noexcept nogil
