"""Timeouts of names and attributes, as words that the plugin can change while a volume is served.

A word has a timeout in one piece, so that no thread sees half of a change. passthrough/options/
timeouts.py makes the words. The functions take whatever a word has: a worker that is compromised
can write it, too, but only for its own volume.
"""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.layout cimport RELAXED, load64


cdef enum:
    # In the order of Timeouts in passthrough/options/timeouts.py.
    FILE_ENTRY = 0
    FILE_ATTR = 1
    DIR_ENTRY = 2
    DIR_ATTR = 3
    NEGATIVE = 4  # 0: absent names are not cached
    TIMEOUTS = 5


cdef enum:
    _SECONDS_SHIFT = 30
    _NANOSECONDS = (1 << 30) - 1


cdef struct Timeout:
    uint64_t seconds
    uint32_t nanoseconds


cdef struct Known:
    uint64_t given[TIMEOUTS]  # by the options of the mount
    const uint64_t *live  # words in force in place of those, as far as they are not 0


cdef const uint64_t *live_words() noexcept nogil


cdef inline Timeout timeout_of(const Known *known, int kind) noexcept nogil:
    """Return a timeout that is in force now."""
    cdef uint64_t word = load64(&known.live[kind], RELAXED)
    return _timeout(word if word else known.given[kind])


cdef inline Timeout timeout_given(const Known *known, int kind) noexcept nogil:
    """Return a timeout that the options of the mount give."""
    return _timeout(known.given[kind])


cdef inline Timeout _timeout(uint64_t word) noexcept nogil:
    cdef Timeout timeout
    timeout.seconds = word << 1 >> (_SECONDS_SHIFT + 1)  # without the bit that makes it not 0
    timeout.nanoseconds = <uint32_t>(word & _NANOSECONDS)
    return timeout
