"""Timeouts that the plugin can change while a volume is served: the memory of their words.

The memory lies in the control page, passthrough/worker/control.py. A process serves one volume. So
the memory is the process's, as that of counters (counters.pyx).
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

cdef uint64_t[TIMEOUTS] _none
cdef const uint64_t *_live = _none
cdef Py_buffer _memory  # of `_live`, once it is not `_none`


def live_in(memory not None, Py_ssize_t at):
    """Take the words of volumes that are made from now on from `memory`, from the byte `at` on."""
    global _live, _memory
    cdef Py_buffer memory_of
    PyObject_GetBuffer(memory, &memory_of, PyBUF_SIMPLE)
    if at < 0 or at % 8 or at + <Py_ssize_t>sizeof(_none) > memory_of.len:
        PyBuffer_Release(&memory_of)
        raise ValueError("no room for the timeouts there")
    if _live != _none:
        PyBuffer_Release(&_memory)
    _memory = memory_of
    _live = <const uint64_t *>(<const char *>memory_of.buf + at)


cdef const uint64_t *live_words() noexcept nogil:
    """Return the words of the volume that this process serves."""
    return _live
