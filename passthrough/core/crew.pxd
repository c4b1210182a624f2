"""The threads that take one volume's requests, from /dev/fuse or from a queue of io_uring."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from passthrough.core.device cimport Buffers, Head
from passthrough.core.entry cimport Place
from passthrough.core.journal cimport Journal
from passthrough.core.layout cimport pthread_mutex_t
from passthrough.core.state cimport Thread, Volume

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_cond_t:
        pass
    int pthread_cond_broadcast(pthread_cond_t *condition)
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)

ctypedef void *(*Run)(void *argument) noexcept nogil


cdef enum:
    # If more callers hang, no thread is added; waits for locks do not count.
    MAX_THREADS = 256
    MAX_QUEUE_THREADS = 64
    MAX_PARKED = 8  # callers that sync at the same time come back at the same time
    MAX_SLOTS = 1280  # MAX_THREADS, and as many waits for locks as there may be
    MAX_PLACES = 1 << 16  # for requests, of all slots
    DEVICE = -1  # Crew.queue
    PROCESSORS_BYTES = 1024  # a set with room for 8192 processors, the most that Linux has


# The states of a slot.
cdef enum:
    FREE = 0  # no thread
    READING = 1  # or about to
    SERVING = 2
    PARKED = 3
    DISMISSED = 4  # out of PARKED, to end
    STARTING = 5  # the kernel does not have its entry yet


cdef struct Crew


# One thread, and its memory. It stays for the next thread when its own has ended.
cdef struct Slot:
    Thread thread
    Buffers buffers
    Place place  # of a thread of a queue
    Journal journal  # of a thread of a queue: the kernel's headers lie in its buffers
    Crew *crew
    pthread_cond_t wake_up  # of a parked thread
    int32_t state
    bint resumes  # its place has a request that a predecessor had in hand
    uint64_t sampled  # Thread.served at the last sample
    uint64_t noted  # Thread.served when another thread began to wait for this one
    uint64_t vain_for  # `noted` when others have waited `vain` times for its request
    int32_t vain


# The work of the process in an interval between samples.
cdef struct Usage:
    double at_s
    double elapsed_s
    double computed_s
    long preemptions
    int unreliable_left
    bint busy  # it computed for most of the interval, so the host did not delay it
    bint unreliable  # the sample came late, or a thread may wait for a processor


# Counts of consecutive samples of one pool.
cdef struct Samples:
    bint had_no_idle
    int held_up
    int stuck
    int with_idle
    int without_requests


# The pool of /dev/fuse, or of one queue of io_uring. A volume has one of the former, and a list of
# the latter.
cdef struct Crew:
    Volume *volume
    Crew *device  # the pool of /dev/fuse
    Crew *next  # in the list of pools, which begins with that of /dev/fuse
    int queue  # DEVICE, or the number of a processor
    int readers  # threads while nothing hangs; of the pool of /dev/fuse
    Run run  # what a thread does
    pthread_mutex_t mutex
    Slot *slots[MAX_SLOTS]
    int32_t top  # slots below it have been made
    int32_t size  # threads that read or serve
    int32_t resuming  # threads of that size with a request that a predecessor had in hand
    int32_t target
    int32_t parked
    int32_t idle  # the main thread need not sample
    int32_t ended
    int32_t error  # errno that has broken the connection
    pthread_cond_t started  # a thread of a queue has been STARTING
    int32_t refused  # errno by which the kernel has refused an entry
    Samples samples
    # of the pool of /dev/fuse alone
    Usage usage
    int memory_fd
    Head *head  # of that memory
    int wake_fd  # eventfd(2) of the main thread
    int32_t shortages  # threads that could not be had
    int32_t provoked  # requests that woke readers, each with a number of its own


cdef Crew *make_crew(
    Volume *v, Crew *device, int queue, int memory_fd, int *error
) noexcept nogil
cdef void stop_crew(Crew *c) noexcept nogil
cdef bint free_crew(Crew *c) noexcept nogil
cdef int processors() noexcept nogil
cdef int in_flight(const Crew *c) noexcept nogil
cdef bint add_thread(Crew *c, bint stays) noexcept nogil
cdef int adopt_places(Crew *c) noexcept nogil
cdef int resume(Crew *c) noexcept nogil
cdef int start_thread(Run run, void *argument) noexcept nogil
cdef bint another_reads(Crew *c, const Slot *slot) noexcept nogil
cdef void leave(Crew *c, Slot *slot) noexcept nogil
cdef void dismiss_parked(Crew *c) noexcept nogil
cdef void wake(Crew *c) noexcept nogil
