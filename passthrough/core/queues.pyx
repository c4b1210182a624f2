"""The threads that serve io_uring entries: a few for each processor, pinned to it, one entry each.

The kernel gives a request to the entry that became free last. So one thread of a processor serves
all requests as long as it keeps up. It runs where the request was made, and no thread on another
processor is woken. The second thread is there in case the host blocks the first.

No thread leaves before the connection ends, because the kernel does not give an entry back.

A new entry is given no request that has waited before the entry came, because only an answer makes
the kernel look. So a thread that is added later has the kernel send it something to answer: nothing
of the cached pages of a regular file.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memset

from passthrough.core.crew cimport (
    PROCESSORS_BYTES, READING, SERVING, STARTING, Crew, Slot, add_thread, another_reads, leave,
    make_crew, pthread_cond_broadcast, pthread_cond_wait, wake,
)
from passthrough.core.entry cimport close_place, open_place, receive_at, reply_at
from passthrough.core.identity cimport identity_thread
from passthrough.core.layout cimport (
    ACQUIRE, NONE, RELAXED, RELEASE, SEQ_CST, Tables, add32, load32, next_inode, store32,
)
from passthrough.core.libc cimport (
    EAGAIN, ECONNABORTED, EINVAL, ENODEV, ENOENT, ENOTCONN, S_IFREG,
)
from passthrough.core.loop cimport serve
from passthrough.core.notify cimport provoke_numbered
from passthrough.core.service cimport another_serves, resume_sampling
from passthrough.core.slots cimport pthread_mutex_lock, pthread_mutex_unlock
from passthrough.core.state cimport Thread, is_stopped

cdef extern from "<sched.h>" nogil:
    ctypedef struct cpu_set_t:
        pass
    void CPU_SET_S(int processor, size_t size, cpu_set_t *set)
    int sched_setaffinity(int pid, size_t size, const cpu_set_t *set)

cdef enum:
    FIRST_THREADS = 2  # one serves, the other waits
    SEARCHED_INODES = 256  # for a regular file that the kernel knows
    REQUESTS_WAIT = 1


cdef int start_queues(Crew *device, const int *processors, int count) noexcept nogil:
    """Start the first threads of every processor: 0, or the -errno by which the kernel refuses."""
    cdef Crew *c
    cdef int index, _thread, error = 0
    device.volume.wait_hook = _may_wait
    for index in range(count):
        c = make_crew(device.volume, device, processors[index], -1, &error)
        if c == NULL:
            return -error
        c.run = _run
        store32(&c.idle, 1, RELEASE)
        for _thread in range(FIRST_THREADS):
            error = _add_and_wait(c)
            if _is_end(error):
                return 0  # it has just been unmounted, which /dev/fuse reports
            if error < 0:
                return error
    return 0


cdef int _add_and_wait(Crew *c) noexcept nogil:
    """Add a thread, and wait until the kernel has its entry or has refused it."""
    cdef int result = 0
    if not add_thread(c, True):
        return -EAGAIN
    pthread_mutex_lock(&c.mutex)
    while _starting(c):
        pthread_cond_wait(&c.started, &c.mutex)
    result = -c.refused
    pthread_mutex_unlock(&c.mutex)
    return result


cdef bint _starting(const Crew *c) noexcept nogil:
    cdef int index
    for index in range(c.top):
        if load32(&c.slots[index].state, ACQUIRE) == STARTING:
            return True
    return False


cdef bint _is_end(int result) noexcept nogil:
    return (
        result == -ENOTCONN or result == -ECONNABORTED or result == -ENODEV or result == -ENOENT
    )


cdef bint _may_wait(Thread *t) noexcept nogil:
    """Return whether another thread serves this one's processor; try to add one.

    A new thread counts once the kernel has its entry.
    """
    cdef Slot *slot = <Slot *>t.of_crew
    if another_serves(slot.crew, slot):
        return True
    return _add_and_wait(slot.crew) == 0


cdef void *_run(void *argument) noexcept nogil:
    cdef Slot *slot = <Slot *>argument
    cdef Crew *c = slot.crew
    cdef int result
    _pin_to(c.queue)
    memset(&slot.place, 0, sizeof(slot.place))
    result = identity_thread(&slot.thread)
    if result == 0:
        result = open_place(&slot.place, &slot.buffers, c.volume.device_fd, c.queue)
    if result == 0:
        _begin(c, slot)
        result = _work(c, slot)
        close_place(&slot.place)
    else:
        store32(&c.refused, -result, RELEASE)
    pthread_mutex_lock(&c.mutex)
    if result < 0 and not _is_end(result) and slot.state != STARTING and not is_stopped(c.volume):
        c.device.error = -result
        store32(&c.device.ended, 1, RELEASE)
        wake(c)
    leave(c, slot)
    pthread_cond_broadcast(&c.started)
    pthread_mutex_unlock(&c.mutex)
    return NULL


cdef void _begin(Crew *c, Slot *slot) noexcept nogil:
    """Take part, now that the kernel has the entry."""
    if load32(&c.size, ACQUIRE) > FIRST_THREADS:
        _hurry(c)
    pthread_mutex_lock(&c.mutex)
    c.refused = 0
    store32(&slot.state, READING, RELEASE)
    pthread_cond_broadcast(&c.started)
    pthread_mutex_unlock(&c.mutex)


cdef void _hurry(Crew *c) noexcept nogil:
    """Have requests that wait in the queue of this thread's processor brought, if possible."""
    cdef Tables *t = c.volume.tables
    cdef uint32_t index = next_inode(t, NONE)
    cdef int _tries, result
    for _tries in range(SEARCHED_INODES):
        if index == NONE:
            break
        if t.inodes[index].type == S_IFREG:
            result = provoke_numbered(
                c.volume, t.inodes[index].nodeid, add32(&c.device.provoked, 1, RELAXED)
            )
            # It may have been forgotten meanwhile.
            if result != -ENOENT and result != -EINVAL:
                return
        index = next_inode(t, index)


cdef int _work(Crew *c, Slot *slot) noexcept nogil:
    """Serve requests; return 0 at the end, -errno if the connection is broken."""
    cdef Thread *t = &slot.thread
    cdef int received
    while True:
        received = receive_at(t, &slot.place)
        if received <= 0:
            return received
        store32(&slot.state, SERVING, SEQ_CST)
        if load32(&c.idle, SEQ_CST) and not another_reads(c, slot):
            resume_sampling(c)
        if is_stopped(c.volume):
            return 0
        reply_at(t, &slot.place, serve(t, <uint32_t>received))
        store32(&slot.state, READING, RELEASE)


cdef void _pin_to(int processor) noexcept nogil:
    """Pin this thread to a processor, if it is online and this process may use it."""
    cdef char processors[PROCESSORS_BYTES]
    memset(processors, 0, sizeof(processors))
    CPU_SET_S(processor, sizeof(processors), <cpu_set_t *>processors)
    sched_setaffinity(0, sizeof(processors), <const cpu_set_t *>processors)
