"""Calls of Python, for the few things that the request path leaves to Python.

Each is rare: INIT, a lookup that crosses a mount point, a line of the log that is written once.
Such a call costs 8 us if Python's code lies in the processor's caches, and 37 us if not.
`Volume.python` is the object called, passthrough/session/rare.py. A failed call there costs an
errno and never the mount.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.crash cimport note_crash
from passthrough.core.layout cimport RELAXED
from passthrough.core.libc cimport EIO, _exit
from passthrough.core.state cimport REPORT_KINDS, Thread, Volume

cdef extern from * nogil:
    uint64_t fetch_or "__atomic_fetch_or"(uint64_t *place, uint64_t bits, int order)

cdef enum:
    EXIT_IDENTITY_LOST = 77  # EX_NOPERM, sysexits(3): no other end of the worker has this status


cdef void report(Volume *v, int what, long number, const char *name) noexcept nogil:
    """Have a line written to the log, unless there was one of this kind and number before."""
    cdef uint64_t bit = <uint64_t>1 << (number & 63)
    if not 0 <= what < REPORT_KINDS or fetch_or(&v.reported[what], bit, RELAXED) & bit:
        return
    with gil:
        _report(v, what, number, name)


cdef _report(Volume *v, int what, long number, const char *name):
    try:
        (<object>v.python).report(what, number, <bytes>name if name != NULL else b"")
    except Exception:  # what cannot be logged must not harm the request
        pass


cdef int open_across(Thread *t, int dir_fd, const char *name) noexcept nogil:
    """Open what is mounted on a name, unless it is passfs: an O_PATH descriptor, or -errno."""
    with gil:
        return _open_across(t.volume, dir_fd, name)


cdef int _open_across(Volume *v, int dir_fd, const char *name) noexcept:
    try:
        return (<object>v.python).open_across(dir_fd, <bytes>name)
    except OSError as error:
        return -(error.errno or EIO)
    except Exception as error:
        _mistake(v, "open_across", error)
    return -EIO


cdef int serve_in_python(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t length
) noexcept nogil:
    """Have a handler in Python serve a request; a handler of the loop's table."""
    with gil:
        return _serve(t, h, arg, length)


cdef int _serve(Thread *t, const fuse_in_header *h, const char *arg, uint32_t length) noexcept:
    cdef bytes body
    try:
        body = (<object>t.volume.python).serve(h.opcode, arg[:length])
        if len(body) <= <Py_ssize_t>t.out_size:
            memcpy(t.out, <const char *>body, len(body))
            return <int>len(body)
    except OSError as error:
        return -(error.errno or EIO)
    except Exception as error:
        _mistake(t.volume, "serve", error)
    return -EIO


cdef _mistake(Volume *v, str what, error):
    try:
        (<object>v.python).mistake(what, error)
    except Exception:  # the request gets its EIO all the same
        pass


cdef void end_process(Volume *v, const char *why) noexcept nogil:
    """End the process: a thread with other ids or capabilities must serve no request."""
    with gil:
        _last_words(v, why)
    note_crash()
    _exit(EXIT_IDENTITY_LOST)


cdef _last_words(Volume *v, const char *why):
    try:
        (<object>v.python).last_words(<bytes>why)
    except Exception:
        pass
