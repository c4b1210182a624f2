"""The request in which a thread crashes: noted for the process that takes over."""

from passthrough.core.state cimport Thread


cdef enum:
    CRASH_STACK = 16384  # bytes; a frame of a signal with AVX-512 and AMX takes 11 KiB


cdef void begin_thread(Thread *t, char *stack) noexcept nogil
cdef void note_crash() noexcept nogil
