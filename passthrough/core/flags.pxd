"""The flags of files and their project ids, by ioctl(2)."""

from libc.stdint cimport uint32_t

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.state cimport Thread


cdef int do_ioctl(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
