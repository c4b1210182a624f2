"""Calls of Python, which take the interpreter's lock; all are rare."""

from libc.stdint cimport uint32_t

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.state cimport Thread, Volume


cdef void report(Volume *v, int what, long number, const char *name) noexcept nogil
cdef int open_across(Thread *t, int dir_fd, const char *name) noexcept nogil
cdef void end_process(Volume *v, const char *why) noexcept nogil
cdef int serve_in_python(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t length
) noexcept nogil
