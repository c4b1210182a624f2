"""A thread in service: reads a request, has it served, writes the reply, and begins again.

The functions that handlers call before they block are here, too. A handler that is about to wait
for a disk calls `about_to_block` first, which adds a thread at once. When the call has returned,
the two threads do not alternate: the first that finds the other one idle leaves.

A few threads that leave are parked until the pool is idle. Waking a parked thread costs a fraction
of starting one.

The threads are no threads of Python: they take the interpreter's lock only in rare.pyx.
"""

from libc.stdint cimport uint32_t

from passthrough.native.abi cimport FUSE_SETLK, FUSE_SETLKW
from passthrough.native.crew cimport (
    DEVICE, DISMISSED, MAX_PARKED, PARKED, READING, SERVING, Crew, Slot, add_thread, another_reads,
    leave, pthread_cond_wait, wake,
)
from passthrough.native.device cimport give_pages_back, receive, send
from passthrough.native.entries cimport leaves_pages
from passthrough.native.identity cimport identity_thread, is_itself
from passthrough.native.layout cimport ACQUIRE, RELAXED, RELEASE, SEQ_CST, load32, store32
from passthrough.native.libc cimport EAGAIN, timespec
from passthrough.native.locks cimport waiting
from passthrough.native.loop cimport serve
from passthrough.native.polling cimport wait_for_request
from passthrough.native.slots cimport pthread_mutex_lock, pthread_mutex_unlock
from passthrough.native.state cimport Thread

cdef extern from "<time.h>" nogil:
    int nanosleep(const timespec *time, timespec *left)

cdef enum:
    WAIT_NS = 1000000
    LONGEST_WAITS = 20


cdef int start_service(Crew *c) noexcept nogil:
    """Start the first thread: 0, or -errno (EAGAIN: there is no thread to be had)."""
    c.run = _run
    c.volume.crew = c
    c.volume.block_hook = _about_to_block
    c.volume.wait_hook = _may_wait
    c.volume.finish_hook = _let_others_finish
    return 0 if add_thread(c, True) else -EAGAIN


cdef void *_run(void *argument) noexcept nogil:
    cdef Slot *slot = <Slot *>argument
    cdef Crew *c = slot.crew
    cdef int result = identity_thread(&slot.thread)
    cdef bint unprepared = result < 0
    if not unprepared:
        result = _work(c, slot)
    pthread_mutex_lock(&c.mutex)
    if unprepared and c.size > 1:
        result = 1  # the other threads serve without this one
    if result <= 0 and not c.stopped:
        c.error = -result
        store32(&c.ended, 1, RELEASE)
        wake(c)
    leave(c, slot)
    pthread_mutex_unlock(&c.mutex)
    return NULL


cdef int _work(Crew *c, Slot *slot) noexcept nogil:
    """Serve requests; return 1 if the thread leaves, 0 at the end, -errno if it is broken."""
    cdef Thread *t = &slot.thread
    cdef int received
    cdef uint32_t length
    while True:
        if load32(&c.polling.on, RELAXED):
            wait_for_request(&c.polling, c.volume.device_fd)
        received = receive(t, &slot.buffers)
        if received <= 0:
            return received
        # Stored before the loads: others store `idle` or `stopped`, and then load the state.
        store32(&slot.state, SERVING, SEQ_CST)
        if load32(&c.idle, SEQ_CST):
            resume_sampling(c)
        if load32(&c.stopped, SEQ_CST):
            return 1
        length = serve(t, <uint32_t>received)
        if length:
            send(t, length)
        elif leaves_pages(t.request):
            give_pages_back(&slot.buffers)
        if load32(&c.size, RELAXED) > load32(&c.target, RELAXED) and _park_or_end(c, slot):
            return 1
        store32(&slot.state, READING, RELEASE)


cdef void resume_sampling(Crew *c) noexcept nogil:
    pthread_mutex_lock(&c.mutex)
    if c.idle:
        store32(&c.idle, 0, RELEASE)
        wake(c)
    pthread_mutex_unlock(&c.mutex)


cdef bint _park_or_end(Crew *c, Slot *slot) noexcept nogil:
    """Park a thread that is surplus; return whether it is to end."""
    cdef bint ends = False
    pthread_mutex_lock(&c.mutex)
    if c.stopped:
        ends = True
    elif c.size - <int>waiting(c.volume) > c.target and another_reads(c, slot):
        if c.parked >= MAX_PARKED:
            ends = True
        else:
            c.size -= 1
            c.parked += 1
            store32(&slot.state, PARKED, RELEASE)
            while slot.state == PARKED:
                pthread_cond_wait(&slot.wake_up, &c.mutex)
            ends = slot.state == DISMISSED
            c.size += ends  # `leave` takes it off again
    pthread_mutex_unlock(&c.mutex)
    return ends


cdef void _about_to_block(Thread *t) noexcept nogil:
    """Add a thread if none reads.

    Not to a queue of io_uring: no thread leaves it again, and a second one waits from the start.
    Nor inside of a guard: the new thread would inherit the ids and capabilities of a caller.
    """
    cdef Slot *slot = <Slot *>t.of_crew
    if slot.crew.queue == DEVICE and is_itself(t) and not another_reads(slot.crew, slot):
        add_thread(slot.crew, False)


cdef bint _may_wait(Thread *t) noexcept nogil:
    """Return whether another thread serves while this one waits; try to add one.

    If no thread can be added, the last one must not wait for a lock: it has to serve the unlock.
    """
    cdef Slot *slot = <Slot *>t.of_crew
    if another_serves(slot.crew, slot):
        return True
    # The new thread may have a request in hand by now; if that is to wait, too, it asks for itself.
    return add_thread(slot.crew, False) or another_serves(slot.crew, slot)


cdef bint another_serves(Crew *c, const Slot *slot) noexcept nogil:
    """Return whether a thread other than this one can serve an unlock.

    The caller's own request is visible in its slot. So if several threads ask at the same time, the
    last one sees the requests of all the others.
    """
    cdef const Slot *other
    cdef uint32_t opcode
    cdef bint found = False
    cdef int index
    pthread_mutex_lock(&c.mutex)
    for index in range(c.top):
        other = c.slots[index]
        if other == slot:
            continue
        if load32(&other.state, ACQUIRE) == READING:
            found = True
        elif load32(&other.state, ACQUIRE) == SERVING:
            # It may wait for a lock, or for pages that are being read (locks.pyx).
            opcode = other.thread.request.opcode
            found = found or not (opcode == FUSE_SETLK or opcode == FUSE_SETLKW)
    pthread_mutex_unlock(&c.mutex)
    return found


cdef bint _let_others_finish(Thread *t) noexcept nogil:
    """Wait until other threads have served what they took before this request, or 20 ms.

    False: there are no others, so that all earlier requests are served.
    """
    cdef Slot *slot = <Slot *>t.of_crew
    cdef Crew *first = slot.crew.device
    cdef int _tries
    if first.next == NULL and load32(&first.size, ACQUIRE) == 1:
        return False
    _about_to_block(t)
    _sleep()  # a thread that has just taken a request may not have marked its slot yet
    _note(first)
    for _tries in range(LONGEST_WAITS):
        if not _serves_what_was_noted(first, slot):
            break
        _sleep()
    return True


cdef void _note(Crew *c) noexcept nogil:
    cdef int index
    while c != NULL:
        for index in range(load32(&c.top, ACQUIRE)):
            c.slots[index].noted = c.slots[index].thread.served
        c = c.next


cdef bint _serves_what_was_noted(Crew *c, const Slot *but) noexcept nogil:
    """Return whether a thread, not one that waits for a lock, still serves a request of before."""
    cdef const Slot *slot
    cdef bint found = False
    cdef int index
    while c != NULL and not found:
        pthread_mutex_lock(&c.mutex)  # no thread may begin in a slot that is looked at
        for index in range(c.top):
            slot = c.slots[index]
            if slot == but or load32(&slot.state, ACQUIRE) != SERVING:
                continue
            if slot.thread.request.opcode != FUSE_SETLKW and slot.thread.served == slot.noted:
                found = True
        pthread_mutex_unlock(&c.mutex)
        c = c.next
    return found


cdef void _sleep() noexcept nogil:
    cdef timespec time
    time.tv_sec = 0
    time.tv_nsec = WAIT_NS
    nanosleep(&time, NULL)
