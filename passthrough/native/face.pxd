"""The core for Python, and for probes."""

from passthrough.native.crew cimport Crew
from passthrough.native.device cimport Buffers
from passthrough.native.state cimport Thread, Volume


cdef class Core:
    cdef Volume *_volume
    cdef Crew *_crew
    cdef Thread *_own  # of the calls that Python makes
    cdef Buffers _buffers
    cdef object _python
    cdef bint _ready
    cdef unsigned long _thread  # the one that makes the calls

    cdef _make_tables(self, config, int source_fd)
    cdef _prepare(self)
