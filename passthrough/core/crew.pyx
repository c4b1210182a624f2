"""The pool of threads that read /dev/fuse; each serves one request after the other.

On more than one processor, two threads read while nothing hangs. The kernel wakes them in turn.
With one reader, the scheduler runs caller and reader on two processors, each of which is idle when
the other one wakes it, and such a wake-up costs more than most requests. The second reader often
keeps the other processor from being idle. So the caller stays with the reader that has answered,
and their processor goes from one to the other without a wake-up across. A third reader would cost
more than it gains, and on a single processor one reader is best.

The host may block both. The main thread samples the pool every 5 ms while there is work. If no
thread is idle because the host blocks all of them, and not because they compute, it adds threads.

So a system call that hangs delays its own caller. If as many hang as there are readers, all other
callers wait until the second sample (10 ms at most). If other programs have the processors, a
thread that waits for a processor looks much like one that waits for the host. The delay then lasts
until the fifth sample: 25 ms, or longer if the samples come late.

Only a request wakes a thread inside read(2). So a surplus thread leaves after its next request. If
no request comes, the pool has the kernel send some that need no answer. When the session stops,
its threads stay inside read(2), and do not serve the requests that they may still read. The kernel
fails such a request when the connection ends.

service.pyx has what a thread does, watch.pyx what the main thread does.
"""

from libc.stdint cimport int32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from passthrough.core.device cimport (
    PAGE, free_buffers, give_all_pages_back, make_buffers, map_head, use_buffers,
)
from passthrough.core.layout cimport ACQUIRE, RELAXED, RELEASE, SEQ_CST, add32, load32, store32
from passthrough.core.libc cimport (
    EAGAIN, ENOMEM, close, errno, munmap, write,
)
from passthrough.core.locks cimport waiting
from passthrough.core.rare cimport report
from passthrough.core.slots cimport (
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)
from passthrough.core.state cimport REPORT_NO_THREAD, Thread, Volume, is_stopped

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_attr_t:
        pass
    enum:
        PTHREAD_CREATE_DETACHED
    int pthread_attr_init(pthread_attr_t *attributes)
    int pthread_attr_destroy(pthread_attr_t *attributes)
    int pthread_attr_setstacksize(pthread_attr_t *attributes, size_t size)
    int pthread_attr_setdetachstate(pthread_attr_t *attributes, int state)
    int pthread_create(
        pthread_t *thread, const pthread_attr_t *attributes, Run run, void *argument
    )
    int pthread_cond_init(pthread_cond_t *condition, const void *attributes)
    int pthread_cond_signal(pthread_cond_t *condition)

cdef extern from "<sched.h>" nogil:
    ctypedef struct cpu_set_t:
        pass
    int CPU_COUNT_S(size_t size, const cpu_set_t *set)
    int sched_getaffinity(int pid, size_t size, cpu_set_t *set)

cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned int value, int flags)

cdef enum:
    STACK_SIZE = 1 << 20  # bytes; Python runs on it, too (rare.pyx)


cdef Crew *make_crew(
    Volume *v, Crew *device, int queue, int memory_fd, int *error
) noexcept nogil:
    """Make a pool without threads, at the end of the list that begins with `device`.

    The pool of /dev/fuse comes first; `device` is then NULL, and `memory_fd` the memory of another
    program's requests, or -1. If NULL is returned, `error` has the errno.
    """
    cdef Crew *c = <Crew *>calloc(1, sizeof(Crew))
    cdef Crew *last = device
    if c == NULL:
        error[0] = ENOMEM
        return NULL
    c.volume = v
    c.queue = queue
    c.device = device if device != NULL else c
    c.memory_fd = memory_fd
    c.wake_fd = -1
    pthread_mutex_init(&c.mutex, NULL)
    pthread_cond_init(&c.started, NULL)
    if device == NULL and not _map_memory(c, error):
        free_crew(c)
        return NULL
    if last != NULL:
        while last.next != NULL:
            last = last.next
        last.next = c
    c.target = 0 if queue == DEVICE else MAX_SLOTS
    return c


cdef int processors() noexcept nogil:
    """Return how many processors the calling thread may run on, 2 if unknown."""
    cdef char allowed[PROCESSORS_BYTES]
    memset(allowed, 0, sizeof(allowed))
    if sched_getaffinity(0, sizeof(allowed), <cpu_set_t *>allowed) < 0:
        return 2
    return CPU_COUNT_S(sizeof(allowed), <const cpu_set_t *>allowed)


cdef bint _map_memory(Crew *c, int *error) noexcept nogil:
    """Map the memory of all requests, or make it; false: `error` has the errno."""
    c.head = map_head(&c.memory_fd, MAX_PLACES, error)
    if c.head == NULL:
        return False
    c.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    error[0] = errno
    return c.wake_fd >= 0


cdef bint free_crew(Crew *c) noexcept nogil:
    """Free the pools from this one on, unless a thread is left: then nothing of the volume may be.
    """
    cdef Crew *pool = c
    cdef int index
    while pool != NULL:
        pthread_mutex_lock(&pool.mutex)
        for index in range(pool.top):
            if load32(&pool.slots[index].state, ACQUIRE) != FREE:
                pthread_mutex_unlock(&pool.mutex)
                return False
        pthread_mutex_unlock(&pool.mutex)
        pool = pool.next
    while c != NULL:
        pool = c
        c = c.next
        _free(pool)
    return True


cdef void _free(Crew *c) noexcept nogil:
    cdef int index
    for index in range(c.top):
        free_buffers(&c.slots[index].buffers)
        free(c.slots[index])
    if c.head != NULL:
        munmap(c.head, PAGE)
    if c.memory_fd >= 0:
        close(c.memory_fd)
    if c.wake_fd >= 0:
        close(c.wake_fd)
    free(c)


cdef void stop_crew(Crew *c) noexcept nogil:
    """Serve no further request, in the pools from this one on."""
    if c != NULL:
        store32(&c.volume.stopped, 1, SEQ_CST)
    while c != NULL:
        pthread_mutex_lock(&c.mutex)
        c.target = 0
        dismiss_parked(c)
        pthread_mutex_unlock(&c.mutex)
        c = c.next


cdef int in_flight(const Crew *c) noexcept nogil:
    """Return the number of requests in service, in this pool alone."""
    cdef int index, count = 0
    for index in range(load32(&c.top, ACQUIRE)):
        count += load32(&c.slots[index].state, SEQ_CST) == SERVING
    return count


cdef void wake(Crew *c) noexcept nogil:
    """Have the main thread sample again."""
    cdef uint64_t one = 1
    if write(c.device.wake_fd, &one, sizeof(one)) < 0:
        pass  # EAGAIN: the main thread is awake


cdef bint another_reads(Crew *c, const Slot *slot) noexcept nogil:
    """Return whether a thread other than this one reads; of two that ask, one sees the other."""
    cdef int index
    for index in range(load32(&c.top, ACQUIRE)):
        if c.slots[index] != slot and load32(&c.slots[index].state, SEQ_CST) == READING:
            return True
    return False


cdef bint add_thread(Crew *c, bint stays) noexcept nogil:
    """Recall a parked thread or start a new one; return whether there is one.

    Unless the thread stays, the next thread that finds another one idle leaves.
    """
    cdef Slot *slot
    cdef int result = 0
    pthread_mutex_lock(&c.mutex)
    slot = NULL
    if not is_stopped(c.volume) and c.size < _most(c):
        slot = _parked(c)
        if slot != NULL:
            store32(&slot.state, READING, RELEASE)
            c.parked -= 1
            pthread_cond_signal(&slot.wake_up)
        else:
            slot = _free_slot(c, &result)
            if slot != NULL:
                result = _start(slot, READING if c.queue == DEVICE else STARTING)
            if result < 0:
                slot = NULL
        if slot != NULL:
            c.size += 1
            if stays and c.queue == DEVICE:
                c.target = c.size
    pthread_mutex_unlock(&c.mutex)
    if result < 0 and add32(&c.device.shortages, 1, RELAXED) == 0:
        report(c.volume, REPORT_NO_THREAD, c.size, NULL)
    return slot != NULL


cdef int _most(const Crew *c) noexcept nogil:
    """Return how many threads there may be; one that resumes a request may be about to wait."""
    cdef int serving = MAX_THREADS if c.queue == DEVICE else MAX_QUEUE_THREADS
    return serving + max(<int>waiting(c.volume), load32(&c.resuming, ACQUIRE))


cdef Slot *_parked(Crew *c) noexcept nogil:
    cdef int index
    for index in range(c.top):
        if c.parked and c.slots[index].state == PARKED:
            return c.slots[index]
    return NULL


cdef Slot *_free_slot(Crew *c, int *error) noexcept nogil:
    """Return a slot without a thread, or NULL and -errno."""
    cdef int index
    for index in range(c.top):
        if c.slots[index].state == FREE:
            return c.slots[index]
    if load32(&c.device.head.places, RELAXED) >= MAX_PLACES:
        error[0] = -EAGAIN
        return NULL
    return _make_slot(c, add32(&c.device.head.places, 1, RELAXED), error)


cdef Slot *_make_slot(Crew *c, long place, int *error) noexcept nogil:
    """Add a slot with the memory of this place; NULL and -errno."""
    cdef Slot *slot
    if c.top == MAX_SLOTS:
        error[0] = -EAGAIN
        return NULL
    slot = <Slot *>calloc(1, sizeof(Slot))
    if slot == NULL:
        error[0] = -ENOMEM
        return NULL
    error[0] = make_buffers(&slot.buffers, c.device.head, c.device.memory_fd, place)
    if error[0] < 0:
        free(slot)
        return NULL
    pthread_cond_init(&slot.wake_up, NULL)
    slot.crew = c
    use_buffers(&slot.thread, &slot.buffers)  # others look at a request before its thread is there
    c.slots[c.top] = slot
    store32(&c.top, c.top + 1, RELEASE)
    return slot


cdef int adopt_places(Crew *c) noexcept nogil:
    """Make a slot without a thread for each place that predecessors have taken; 0 or -errno."""
    cdef int32_t place
    cdef int error = 0
    for place in range(1, min(load32(&c.head.places, RELAXED), <int32_t>MAX_SLOTS + 1)):
        if _make_slot(c, place, &error) == NULL:
            return error
    return 0


cdef int resume(Crew *c) noexcept nogil:
    """Start a thread for each request that a predecessor had in hand; 0 or -errno.

    Each one counts as soon as the request is found, because the others may wait for it
    (`let_others_finish`). A thread that has answered its request is surplus.
    """
    cdef int index
    cdef int result = 0
    pthread_mutex_lock(&c.mutex)
    for index in range(c.top):
        if c.slots[index].resumes and result == 0:
            result = _start(c.slots[index], SERVING)
    pthread_mutex_unlock(&c.mutex)
    return result


cdef int _start(Slot *slot, int state) noexcept nogil:
    """Start the thread of a slot, in this state; 0 or -errno."""
    cdef int result
    memset(&slot.thread, 0, sizeof(Thread))
    slot.thread.volume = slot.crew.volume
    slot.thread.of_crew = slot
    slot.sampled = 0
    slot.vain = 0
    use_buffers(&slot.thread, &slot.buffers)
    if slot.crew.queue != DEVICE:
        slot.thread.journal = &slot.journal
    store32(&slot.state, state, RELEASE)
    result = start_thread(slot.crew.run, slot)
    if result < 0:
        store32(&slot.state, FREE, RELEASE)
    return result


cdef int start_thread(Run run, void *argument) noexcept nogil:
    """Start a thread that is not waited for; 0 or -errno."""
    cdef pthread_attr_t attributes
    cdef pthread_t thread
    cdef int error
    pthread_attr_init(&attributes)
    pthread_attr_setstacksize(&attributes, STACK_SIZE)
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED)
    error = pthread_create(&thread, &attributes, run, argument)
    pthread_attr_destroy(&attributes)
    return -error


cdef void leave(Crew *c, Slot *slot) noexcept nogil:
    """Have a slot without a thread; under the mutex.

    A request stays for a successor if it came once the pool was stopped, or if this thread was to
    resume it.
    """
    cdef int index
    c.size -= 1
    for index in range(c.top if is_stopped(c.volume) else min(c.top, c.device.readers)):
        if c.slots[index] == slot:
            break
    else:
        if not slot.resumes:
            give_all_pages_back(&slot.buffers)
    store32(&slot.state, FREE, RELEASE)


cdef void dismiss_parked(Crew *c) noexcept nogil:
    cdef int index
    for index in range(c.top):
        if c.slots[index].state == PARKED:
            store32(&c.slots[index].state, DISMISSED, RELEASE)
            c.parked -= 1
            pthread_cond_signal(&c.slots[index].wake_up)
