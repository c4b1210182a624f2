"""The core for Python, and for probes."""

from passthrough.core.crew cimport Crew
from passthrough.core.device cimport Buffers
from passthrough.core.state cimport Thread, Volume
from passthrough.core.takeover cimport Lost


cdef class Core:
    cdef Volume *_volume
    cdef Crew *_crew
    cdef Thread *_own  # of the calls that Python makes
    cdef Buffers _buffers
    cdef object _python
    cdef dict _kept  # descriptors that were open before the first worker, with their files
    cdef Lost *_lost
    cdef bint _ready
    cdef bint _lent  # the threads have a reference to `_python`
    cdef int _inside  # calls of Python that use the memory without the interpreter's lock
    cdef unsigned long _thread  # the one that makes the calls

    cdef _lend(self)
    cdef _require(self)
    cdef _prepare(self)
