"""SETATTR: changes of attributes."""

from libc.stdint cimport uint32_t

from passthrough.native.abi cimport fuse_in_header
from passthrough.native.state cimport Thread


cdef int do_setattr(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
