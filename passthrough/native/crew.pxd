"""The threads that read one volume's requests from /dev/fuse."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from passthrough.native.device cimport Buffers
from passthrough.native.layout cimport pthread_mutex_t
from passthrough.native.state cimport Thread, Volume

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_cond_t:
        pass
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)

ctypedef void *(*Run)(void *argument) noexcept nogil


cdef enum:
    MAX_THREADS = 256  # if more callers hang, no thread is added; waits for locks do not count
    MAX_SLOTS = 1280  # MAX_THREADS, and as many waits for locks as there may be


# The states of a slot.
cdef enum:
    FREE = 0  # no thread
    READING = 1  # or about to
    SERVING = 2
    PARKED = 3
    DISMISSED = 4  # out of PARKED, to end


cdef struct Crew


# One thread, and its memory. It stays for the next thread when its own has ended.
cdef struct Slot:
    Thread thread
    Buffers buffers
    Crew *crew
    pthread_cond_t wake_up  # of a parked thread
    int32_t state
    uint64_t sampled  # Thread.served at the last sample


cdef struct Samples:
    double at_s
    double computed_s
    long preemptions
    int unreliable_left
    bint busy
    bint unreliable
    double elapsed_s
    bint had_no_idle
    int held_up
    int with_idle
    int without_requests


cdef struct Crew:
    Volume *volume
    Run run  # what a thread does
    pthread_mutex_t mutex
    Slot *slots[MAX_SLOTS]
    int32_t top  # slots below it have been made
    int32_t size  # threads that read or serve
    int32_t target
    int32_t parked
    int32_t idle  # the main thread need not sample
    int32_t stopped
    int32_t ended
    int32_t error  # errno that has broken the connection
    int memory_fd
    int wake_fd  # eventfd(2) of the main thread
    Samples samples


cdef Crew *make_crew(Volume *v, int *error) noexcept nogil
cdef void stop_crew(Crew *c) noexcept nogil
cdef bint free_crew(Crew *c) noexcept nogil
cdef int in_flight(Crew *c) noexcept nogil
cdef bint add_thread(Crew *c, bint stays) noexcept nogil
cdef bint another_reads(Crew *c, const Slot *slot) noexcept nogil
cdef void leave(Crew *c, Slot *slot) noexcept nogil
cdef void dismiss_parked(Crew *c) noexcept nogil
cdef void wake(Crew *c) noexcept nogil
