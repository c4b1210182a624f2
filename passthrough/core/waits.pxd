"""System calls that wait for a lock, and end when the kernel sends INTERRUPT."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.libc cimport pthread_mutex_t, struct_flock
from passthrough.core.lock_records cimport Named

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_cond_t:
        pass


cdef enum:
    MOST_WAITS = 1024  # each has a thread; one volume's users may not use up the machine's


# One call; its memory serves another one afterwards.
cdef struct Wait:
    pthread_mutex_t mutex  # of the fields below
    pthread_cond_t left
    uint64_t number  # of the request; 0: none
    pthread_t thread
    bint inside
    bint interrupted


cdef struct Waits:
    pthread_mutex_t mutex  # of the fields below
    uint32_t count  # requests that wait: numbers[0:count] with waits[0:count]
    uint32_t made  # waits[0:made] have memory
    uint32_t most
    uint64_t numbers[MOST_WAITS]
    Wait *waits[MOST_WAITS]
    Named *named  # by INTERRUPT


cdef int begin_waits(Waits *waits, Named *named) noexcept nogil
cdef void end_waits(Waits *waits) noexcept nogil
cdef int enter_wait(Waits *waits, uint64_t number, Wait **out) noexcept nogil
cdef void leave_wait(Waits *waits, Wait *wait) noexcept nogil
cdef int wait_for_host(Wait *wait, int fd, struct_flock *lock, int operation) noexcept nogil
cdef bint interrupt(Waits *waits, uint64_t number) noexcept nogil
