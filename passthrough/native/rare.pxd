"""What the request path leaves to Python: calls that take the interpreter's lock, all rare."""

from passthrough.native.state cimport Thread, Volume


cdef void report(Volume *v, int what, long number, const char *name) noexcept nogil
cdef int open_across(Thread *t, int dir_fd, const char *name) noexcept nogil
cdef void end_process(Volume *v, const char *why) noexcept nogil
