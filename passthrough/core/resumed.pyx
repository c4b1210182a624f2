"""Requests that a predecessor had in hand, served by its successor.

A complete reply is sent again: if the kernel has it already, it answers ENOENT. Everything else is
served again, with the journal telling what calls may have been made. A request that has crashed two
workers is not tried a third time: its caller gets EIO. settle.pyx frees what it was to free.
"""

from libc.stdint cimport uint32_t
from libc.stdio cimport snprintf

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.device cimport REQUEST_AT, REQUEST_ROOM, reply_present
from passthrough.core.journal cimport ANSWERED, CALLED, Journal, is_refused
from passthrough.core.loop cimport OUT_HEADER, refuse, serve, serve_begun
from passthrough.core.rare cimport report
from passthrough.core.state cimport REPORT_REFUSED

cdef enum:
    DIGITS = 24


cdef uint32_t serve_again(Thread *t, Buffers *b) noexcept nogil:
    """Return the length of the reply to the request in a place, or 0 if it has none."""
    cdef Journal *j = t.journal
    cdef const fuse_in_header *h = t.request
    cdef uint32_t received = min(h.len, <uint32_t>(REQUEST_ROOM - REQUEST_AT))
    cdef uint32_t length
    if j.unique != h.unique:
        return serve(t, received)
    if j.stage == ANSWERED and OUT_HEADER <= j.reply_length <= OUT_HEADER + t.out_size:
        reply_present(b, j.reply_length)
        return j.reply_length
    if is_refused(j):
        _report(t)
        return refuse(t)
    t.again = j.stage == CALLED
    length = serve_begun(t, received)
    t.again = False
    return length


cdef void _report(const Thread *t) noexcept nogil:
    cdef char nodeid[DIGITS]
    snprintf(nodeid, DIGITS, b"%llu", <unsigned long long>t.request.nodeid)
    report(t.volume, REPORT_REFUSED, t.request.opcode, nodeid)
