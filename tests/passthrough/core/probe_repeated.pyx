"""Requests that are served again, for tests: with the journal that a worker left."""

from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from passthrough.core.device cimport REQUEST_AT, REQUEST_ROOM
from passthrough.core.face cimport Core
from passthrough.core.journal cimport CALLED, Journal
from passthrough.core.loop cimport OUT_HEADER, serve_begun


def noted(Core core not None):
    """Return the journal of the last request that Python has made."""
    return (<const char *>core._own.journal)[:sizeof(Journal)]


def was_called(Core core not None):
    """Return whether the last request has noted a call."""
    return core._own.journal.stage == CALLED


def set_time(Core core not None, double seconds):
    """Change the time of the noted call by so many seconds."""
    core._own.journal.called_s += <long>seconds


def serve_again(Core core not None, bytes request not None, bytes journal not None):
    """Serve a request that a worker had in hand with this journal; return the reply, or None."""
    cdef uint32_t length = <uint32_t>len(request)
    core._prepare()
    if len(request) > REQUEST_ROOM - REQUEST_AT or len(journal) != sizeof(Journal):
        raise ValueError("neither request nor journal")
    memcpy(core._buffers.request + REQUEST_AT, <const char *>request, length)
    memcpy(core._own.journal, <const char *>journal, sizeof(Journal))
    core._own.again = core._own.journal.stage == CALLED
    with nogil:
        length = serve_begun(core._own, length)
    core._own.again = False
    return (core._own.out - OUT_HEADER)[:length] if length else None
