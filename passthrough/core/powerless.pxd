"""Capabilities of a thread; calls as another user without capabilities, for squashing."""

from libc.stdint cimport uint32_t

from passthrough.core.state cimport Ids, Thread


cdef enum:
    FOWNER_BIT = 1 << 3  # CAP_FOWNER, in the low word of a set of capabilities
    FSETID_BIT = 1 << 4  # CAP_FSETID
    RESOURCE_BIT = 1 << 24  # CAP_SYS_RESOURCE

cdef int set_effective(Thread *t, uint32_t added, uint32_t removed) noexcept nogil
cdef void end_as(Thread *t, const char *format, long first, long second) noexcept nogil

cdef int enter_powerless(
    Thread *t, const Ids *ids, const uint32_t *groups, int count
) noexcept nogil
cdef void leave_powerless(Thread *t) noexcept nogil
cdef bint enter_itself(Thread *t) noexcept nogil
cdef void leave_itself(Thread *t, bint entered) noexcept nogil
