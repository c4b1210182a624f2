"""From the bytes of a request to the bytes of its reply."""

from libc.stdint cimport uint32_t

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.state cimport Handler, Thread


cdef enum:
    OUT_HEADER = 16  # sizeof(fuse_out_header), right before Thread.out


cdef uint32_t serve(Thread *t, uint32_t received) noexcept nogil
cdef uint32_t serve_begun(Thread *t, uint32_t received) noexcept nogil
cdef bint is_silent(const fuse_in_header *h) noexcept nogil
cdef uint32_t refuse(Thread *t) noexcept nogil
cdef Handler replace(int opcode, Handler handler) noexcept
