"""Samples the pool of threads, and lets it grow and shrink, until the session ends.

A sample says which threads are idle, how many requests came since the last sample, and whether this
process or the host has used the time. When no request comes for 100 ms, sampling stops until the
next request.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from passthrough.core.crew cimport (
    DEVICE, READING, STARTING, Crew, Samples, Slot, Usage, add_thread, dismiss_parked, in_flight,
)
from passthrough.core.layout cimport (
    ACQUIRE, NONE, SEQ_CST, Tables, load32, next_inode, store32,
)
from passthrough.core.libc cimport (
    CLOCK_MONOTONIC, POLLIN, S_IFREG, clock_gettime, poll, pollfd,
    read, timespec,
)
from passthrough.core.memory cimport trim
from passthrough.core.notify cimport provoke_request
from passthrough.core.slots cimport pthread_mutex_lock, pthread_mutex_unlock
from passthrough.core.state cimport Volume
from passthrough.core.sweep cimport sweep, until_sweep

cdef extern from "<sys/resource.h>" nogil:
    struct timeval:
        long tv_sec
        long tv_usec
    struct rusage:
        timeval ru_utime
        timeval ru_stime
        long ru_nivcsw
    enum:
        RUSAGE_SELF
    int getrusage(int who, rusage *usage)

cdef enum:
    SAMPLE_MS = 5
    SAMPLE_US = 5000
    # Act on so many consecutive unreliable samples: on an overloaded machine all of them are.
    UNRELIABLE_SAMPLES = 4
    # If the host is slow but not stuck, callers gain little from more threads than these. Another
    # thread makes it worse if the first one only waits for a processor: so after so many samples.
    SLOW_HOST_MAX_THREADS = 8
    SLOW_HOST_SAMPLES = 10
    # A thread that serves more requests than this in an interval has a fast host.
    FAST_HOST_REQUESTS = 20
    BUSY_PERCENT = 40  # the host holds no thread up if the process computes for this share
    SHRINK_SAMPLES = 20  # with an idle thread
    IDLE_SAMPLES = 20  # without a request
    SEARCHED_INODES = 1000  # for a regular file, to wake readers by


cdef int watch(Crew *c, int wakeup_fd, int keeper_fd) noexcept nogil:
    """Sample until the connection, the keeper (unless -1) or a signal ends the session.

    INTERRUPTED: a handler of Python may have to run; call again.
    """
    cdef pollfd fds[3]
    cdef uint64_t count
    cdef bint idle
    fds[0].fd, fds[1].fd, fds[2].fd = wakeup_fd, keeper_fd, c.wake_fd
    fds[0].events = fds[2].events = POLLIN
    fds[1].events = 0  # POLLHUP comes by itself; what the keeper writes is not for the worker
    while not load32(&c.ended, ACQUIRE):
        fds[0].revents = fds[1].revents = fds[2].revents = 0
        idle = _all_idle(c)
        if poll(fds, 3, until_sweep(c.volume) if idle else SAMPLE_MS) < 0:
            return INTERRUPTED
        if fds[1].revents:
            return KEEPER_ENDED
        if fds[0].revents:
            return SIGNALLED
        if until_sweep(c.volume) == 0:
            sweep(c.volume)
        if idle and not fds[2].revents:
            continue
        if fds[2].revents and read(c.wake_fd, &count, sizeof(count)) < 0:
            pass  # EAGAIN: nothing to do
        _measure(&c.usage)
        _sample(c)
    return CONNECTION_ENDED


cdef bint _all_idle(const Crew *c) noexcept nogil:
    while c != NULL:
        if not load32(&c.idle, SEQ_CST):
            return False
        c = c.next
    return True


cdef void _sample(Crew *first) noexcept nogil:
    """Let the pools grow or shrink if needed."""
    cdef Crew *c = first
    while c != NULL:
        if not load32(&c.idle, SEQ_CST):
            if c.queue == DEVICE:
                _sample_device(c)
            else:
                _sample_queue(c, &first.usage)
        c = c.next
    if _all_idle(first):
        memset(&first.usage, 0, sizeof(first.usage))
        trim(first.volume.tables)


cdef void _sample_device(Crew *c) noexcept nogil:
    cdef Samples *s = &c.samples
    cdef Usage *u = &c.usage
    cdef uint64_t requests = 0
    cdef bint none_idle = _count(c, &requests)
    cdef bint held_up
    held_up = none_idle and s.had_no_idle and not u.busy and not _is_fast(u, requests, c.size)
    s.held_up = s.held_up + 1 if held_up else 0
    if requests:
        _add_for_slow_host(c)
    elif s.held_up >= _enough(u):
        _double(c)
    s.without_requests = 0 if none_idle or requests else s.without_requests + 1
    s.with_idle = 0 if none_idle else s.with_idle + 1
    s.had_no_idle = none_idle
    if s.with_idle >= SHRINK_SAMPLES:
        s.with_idle = 0
        _shrink(c, max(c.readers + in_flight(c), c.size // 2))
    if s.without_requests >= IDLE_SAMPLES:
        _become_idle(c)


cdef void _sample_queue(Crew *c, const Usage *u) noexcept nogil:
    """Sample the pool of one processor, which only grows.

    The process may compute for other processors meanwhile. So the pool is doubled, too, if no
    thread of the processor has taken a request for ten samples (50 ms).
    """
    cdef Samples *s = &c.samples
    cdef uint64_t requests = 0
    cdef bint none_idle = _count(c, &requests)
    cdef bint held_up
    held_up = none_idle and s.had_no_idle and not u.busy and not _is_fast(u, requests, c.size)
    s.held_up = s.held_up + 1 if held_up else 0
    s.stuck = s.stuck + 1 if none_idle and not requests else 0
    if requests:
        _add_for_slow_host(c)
    elif s.held_up >= _enough(u) or s.stuck >= SLOW_HOST_SAMPLES:
        s.stuck = 0
        _double(c)
    s.had_no_idle = none_idle
    s.without_requests = 0 if none_idle else s.without_requests + 1
    if s.without_requests >= IDLE_SAMPLES:
        memset(s, 0, sizeof(Samples))
        store32(&c.idle, 1, SEQ_CST)
        # A thread that took a request before this saw no reason to wake the main thread.
        if _none_reads(c):
            store32(&c.idle, 0, SEQ_CST)


cdef bint _none_reads(const Crew *c) noexcept nogil:
    cdef int index
    for index in range(load32(&c.top, ACQUIRE)):
        if load32(&c.slots[index].state, SEQ_CST) == READING:
            return False
    return True


cdef int _enough(const Usage *u) noexcept nogil:
    """Return how many samples say that the host holds all threads up."""
    return UNRELIABLE_SAMPLES if u.unreliable else 1


cdef void _add_for_slow_host(Crew *c) noexcept nogil:
    if c.samples.held_up >= SLOW_HOST_SAMPLES and c.size < SLOW_HOST_MAX_THREADS:
        c.samples.held_up = 0
        add_thread(c, True)


cdef bint _count(Crew *c, uint64_t *requests) noexcept nogil:
    """Count the requests since the last sample; return whether no thread is idle.

    A thread that starts counts as idle: it will take the next request.
    """
    cdef Slot *slot
    cdef uint64_t served
    cdef bint none_idle = True
    cdef int index, state
    for index in range(load32(&c.top, ACQUIRE)):
        slot = c.slots[index]
        state = load32(&slot.state, ACQUIRE)
        if state == READING or state == STARTING:
            none_idle = False
        served = slot.thread.served
        if served > slot.sampled:
            requests[0] += served - slot.sampled
        slot.sampled = served
    return none_idle


cdef void _measure(Usage *u) noexcept nogil:
    """Find out whether this process has used the interval, and whether the sample is reliable.

    A sample is unreliable if it came late, or if a thread was preempted (ru_nivcsw) within the last
    few intervals, and may still wait for a processor.
    """
    cdef timespec now
    cdef rusage usage
    cdef double at_s, computed_s
    clock_gettime(CLOCK_MONOTONIC, &now)
    getrusage(RUSAGE_SELF, &usage)
    at_s = now.tv_sec + now.tv_nsec * 1e-9
    computed_s = (
        usage.ru_utime.tv_sec + usage.ru_stime.tv_sec
        + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6
    )
    u.elapsed_s = at_s - u.at_s
    if u.at_s > 0 and usage.ru_nivcsw > u.preemptions:
        u.unreliable_left = UNRELIABLE_SAMPLES
    elif u.unreliable_left:
        u.unreliable_left -= 1
    u.busy = (computed_s - u.computed_s) * 100 > u.elapsed_s * BUSY_PERCENT
    u.unreliable = u.elapsed_s * 1e6 > 2 * SAMPLE_US or u.unreliable_left > 0
    u.at_s = at_s
    u.computed_s = computed_s
    u.preemptions = usage.ru_nivcsw


cdef bint _is_fast(const Usage *u, uint64_t requests, int threads) noexcept nogil:
    """Return whether the threads served too many requests in the interval for a slow host."""
    return requests * SAMPLE_US > FAST_HOST_REQUESTS * threads * u.elapsed_s * 1e6


cdef void _double(Crew *c) noexcept nogil:
    cdef int _left
    for _left in range(c.size):
        if not add_thread(c, True):
            return


cdef void _shrink(Crew *c, int size) noexcept nogil:
    pthread_mutex_lock(&c.mutex)
    c.target = min(c.target, size)
    pthread_mutex_unlock(&c.mutex)


cdef void _become_idle(Crew *c) noexcept nogil:
    """Shrink the pool, then stop sampling; if no reader can be woken, just stop sampling."""
    cdef int surplus
    c.samples.without_requests = 0
    pthread_mutex_lock(&c.mutex)
    c.target = c.readers + in_flight(c)
    surplus = c.size - c.target
    pthread_mutex_unlock(&c.mutex)
    if surplus > 0 and _wake_readers(c.volume, surplus):
        return
    pthread_mutex_lock(&c.mutex)
    dismiss_parked(c)
    store32(&c.idle, 1, SEQ_CST)
    pthread_mutex_unlock(&c.mutex)
    memset(&c.samples, 0, sizeof(c.samples))
    if in_flight(c):  # a thread that took a request before this saw no reason to wake
        store32(&c.idle, 0, SEQ_CST)


cdef bint _wake_readers(Volume *v, int count) noexcept nogil:
    """Have the kernel send requests, each of which wakes one thread; return whether it will."""
    cdef Tables *t = v.tables
    cdef unsigned int index = next_inode(t, NONE)
    cdef int tries = 0, _sent
    while index != NONE and t.inodes[index].type != S_IFREG:
        tries += 1
        if tries == SEARCHED_INODES:
            return False
        index = next_inode(t, index)
    if index == NONE:
        return False
    for _sent in range(count):
        if provoke_request(v, t.inodes[index].nodeid) < 0:
            return False
    return True
